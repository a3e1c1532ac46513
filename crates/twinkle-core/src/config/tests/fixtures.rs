//! Every example of every generation: its normal form, what start refuses, what has no effect.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::{ApplicationArgs, Device, ServerConfig};

/// The examples of the documentation, and a file with every key for each generation.
pub(super) fn examples() -> Vec<(String, String)> {
    yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/config/fixtures"))
}

/// The files that run as they are.
pub(super) fn runnable() -> Vec<(String, String)> {
    yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs"))
}

fn yaml_files(folder: &Path) -> Vec<(String, String)> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// All that is known of a file, as one page.
fn told(name: &str, text: &str) -> String {
    let config = match ServerConfig::parse_with(name, text, &|_| None) {
        Ok(config) => config,
        Err(errors) => return format!("# problems\n{errors}\n"),
    };
    let mut page = serde_yaml::to_string(&config).unwrap();
    let refused = config.check_supported().map_or_else(|errors| errors.to_string(), |()| "nothing".to_owned());
    let list = |lines: Vec<String>| if lines.is_empty() { "none".to_owned() } else { lines.join("\n") };
    let _ = write!(page, "\n# refused at start\n{refused}\n");
    let _ = write!(page, "\n# without an effect\n{}\n", list(config.inert_keys()));
    let _ = write!(page, "\n# warnings\n{}\n", list(config.warnings()));
    page
}

#[test]
fn every_example_of_every_generation_has_a_normal_form() {
    let examples = examples();
    assert!(examples.len() >= 20, "the fixtures are gone");
    for (name, text) in examples {
        insta::assert_snapshot!(name.as_str(), told(&name, &text));
    }
}

#[test]
fn an_example_printed_without_its_models_lacks_nothing_else() {
    for generation in ["g2", "g3"] {
        let name = format!("{generation}_node_ranks_as_printed.yaml");
        let (_, text) = examples().into_iter().find(|(known, _)| *known == name).unwrap();
        let errors = ServerConfig::parse_with(&name, &text, &|_| None).unwrap_err();
        assert!(errors.problems.iter().all(|problem| problem.message.starts_with("`model_id` is missing")), "{errors}");
    }
}

#[test]
fn the_runnable_files_run() {
    let files = runnable();
    assert!(files.iter().any(|(name, _)| name == "quickstart.yaml"));
    for (name, text) in files {
        let config = ServerConfig::parse_with(&name, &text, &|_| None).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.check_supported(), Ok(()), "{name} cannot run");
        assert_eq!(config.warnings(), Vec::<String>::new());
        insta::assert_snapshot!(name.as_str(), told(&name, &text));
    }
}

#[test]
fn quickstart_runs_on_the_cpu() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/quickstart.yaml");
    let config = ServerConfig::load(&path).unwrap();
    let model = config.applications.iter().find_map(|application| match &application.args {
        ApplicationArgs::Model(args) => Some(args),
        _ => None,
    });
    assert_eq!(model.unwrap().devices.first(), Device::Cpu);
    assert_eq!(config.inert_keys(), Vec::<String>::new());
}
