//! Every message and the normal form, as an operator sees them.

mod devices;
mod fixtures;
mod generations;
mod grammar;
mod messages;
mod properties;
mod schema;
mod settings;

use super::{ApplicationArgs, ConfigErrors, ModelArgs, ServerConfig};

fn parse(text: &str) -> Result<ServerConfig, ConfigErrors> {
    ServerConfig::parse_with("node.yaml", text, &|_| None)
}

#[track_caller]
fn problems(text: &str) -> String {
    parse(text).expect_err("the configuration was accepted").to_string()
}

/// What the start of a node would refuse.
#[track_caller]
fn refusals(text: &str) -> String {
    let config = parse(text).unwrap_or_else(|errors| panic!("{errors}"));
    config.check_supported().map_or_else(|errors| errors.to_string(), |()| String::new())
}

/// One `model` application with these lines inside its `args`, on one CPU.
fn model_with(lines: &str) -> String {
    model_on("{name: g, ranks: 1, device_type: CPU}", lines)
}

/// One `model` application on these devices, with these lines inside its `args`.
fn model_on(device_group: &str, lines: &str) -> String {
    let mut text = format!(
        "applications:\n  - name: m\n    route_prefix: /api/v1/model/a/b\n    import_path: model\n    args:\n      \
         model_id: ./m\n      device_group: {device_group}\n"
    );
    for line in lines.lines() {
        text.push_str("      ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// The only application's `args`, which must be a model's.
#[track_caller]
fn model_args(config: &ServerConfig) -> &ModelArgs {
    match &config.applications[0].args {
        ApplicationArgs::Model(args) => args,
        other => panic!("not a model: {other:?}"),
    }
}
