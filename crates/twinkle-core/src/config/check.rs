//! Rules that span sections.

use super::application::{Application, ApplicationArgs};
use super::diagnostic::Report;
use super::section::Located;

/// Two trainers or two samplers of one public name would both claim a client's request.
pub(super) fn model_limits(applications: &[Located<Application>], report: &Report) {
    let mut trainers: Vec<&str> = Vec::new();
    let mut samplers: Vec<&str> = Vec::new();
    for application in applications {
        let (seen, name, what) = match &application.value.args {
            ApplicationArgs::Model(args) => (&mut trainers, args.public_name.as_str(), "model"),
            ApplicationArgs::Sampler(args) => (&mut samplers, args.public_name.as_str(), "sampler"),
            ApplicationArgs::Server(_) | ApplicationArgs::Processor(_) => continue,
        };
        if seen.contains(&name) {
            let message = format!("two `{what}` applications serve the model `{name}`");
            report.problem_with_hint(application.place, message, "give one of them another name in its `route_prefix`");
        } else {
            seen.push(name);
        }
    }
}
