//! The command line as a page: `docs/cli.md`.

use std::fmt::Write as _;

use clap::{Arg, Command, CommandFactory as _};
use twinkle_core::docs::assert_written;

use super::Cli;

/// The whole page, in Markdown.
fn page() -> String {
    let mut page = String::from(
        "# The command line\n\n\
         Written from the program's own `--help`; a test compares. Data goes to stdout, everything said to a person to \
         stderr. Exit codes: 0 when it was done, 1 when it could not be done, 2 for a bad command line or configuration. \
         The manual of a running node is [operations.md](operations.md).\n",
    );
    let mut command = Cli::command();
    command.build();
    describe(&mut page, &command, "twinkle-server", 2);
    page
}

/// A command with its options, then those below it.
fn describe(page: &mut String, command: &Command, path: &str, level: usize) {
    let _ = writeln!(page, "\n{} `{path}`\n", "#".repeat(level));
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let _ = writeln!(page, "{}.", about.to_string().trim_end_matches('.'));
    }
    let aliases: Vec<String> = command.get_visible_aliases().map(|alias| format!("`{alias}`")).collect();
    if !aliases.is_empty() {
        let _ = writeln!(page, "\nAlso called {}.", aliases.join(" and "));
    }
    let arguments: Vec<&Arg> = command.get_arguments().filter(|argument| is_shown(argument)).collect();
    if !arguments.is_empty() {
        *page += "\n| Argument | Meaning | Default |\n| --- | --- | --- |\n";
        for argument in arguments {
            let _ = writeln!(page, "| {} | {} | {} |", written(argument), meaning(argument), default(argument));
        }
    }
    if let Some(examples) = command.get_after_help() {
        let _ = writeln!(page, "\n```text\n{}\n```", examples.to_string().trim_end());
    }
    for below in command.get_subcommands().filter(|below| below.get_name() != "help" && !below.is_hide_set()) {
        describe(page, below, &format!("{path} {}", below.get_name()), level + 1);
    }
}

fn is_shown(argument: &Arg) -> bool {
    !argument.is_hide_set() && !matches!(argument.get_id().as_str(), "help" | "version")
}

/// How it is written: `-c, --config <FILE>`.
fn written(argument: &Arg) -> String {
    let names =
        [argument.get_short().map(|short| format!("-{short}")), argument.get_long().map(|long| format!("--{long}"))];
    let names: Vec<String> = names.into_iter().flatten().collect();
    let values = argument.get_value_names().unwrap_or_default();
    let takes_value = argument.get_action().takes_values();
    let value = values.iter().map(|value| format!("<{value}>")).collect::<Vec<_>>().join(" ");
    match (names.is_empty(), takes_value) {
        (true, _) => format!("`{value}`"),
        (false, true) => format!("`{} {value}`", names.join(", ")),
        (false, false) => format!("`{}`", names.join(", ")),
    }
}

fn meaning(argument: &Arg) -> String {
    let mut meaning = argument.get_help().map(ToString::to_string).unwrap_or_default().replace('\n', " ");
    let choices: Vec<String> =
        argument.get_possible_values().iter().map(|choice| format!("`{}`", choice.get_name())).collect();
    if argument.get_action().takes_values() && !choices.is_empty() {
        let _ = write!(meaning, " ({})", choices.join(", "));
    }
    if let Some(variable) = argument.get_env() {
        let _ = write!(meaning, "; also `{}`", variable.to_string_lossy());
    }
    meaning.replace('|', "\\|")
}

fn default(argument: &Arg) -> String {
    if !argument.get_action().takes_values() {
        return String::new();
    }
    let values = argument.get_default_values().iter().map(|value| format!("`{}`", value.to_string_lossy()));
    values.collect::<Vec<_>>().join(" ")
}

#[test]
fn the_documentation_says_what_help_says() {
    assert_written("cli.md", &page());
}
