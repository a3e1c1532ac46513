//! Rules that span sections.

use super::application::{Application, ApplicationArgs};
use super::device::{DeviceGroup, DeviceType};
use super::diagnostic::Report;
use super::model::TrainMode;
use super::section::Located;
use super::tree::Place;

/// Everything that no single application can know.
pub(super) fn all(applications: &[Located<Application>], root: Place, report: &Report) {
    public_names(applications, report);
    device_groups(applications, report);
    for application in applications {
        exclusive_training(application, report);
    }
    completeness(applications, root, report);
}

/// Two trainers or two samplers of one public name would both claim a client's request.
fn public_names(applications: &[Located<Application>], report: &Report) {
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

/// A name stands for one group: two applications may share it, but not mean different cards by it.
///
/// The documentation's own files call the cards of the model and the processes of the processor by one name, so
/// only groups of cards are compared.
fn device_groups(applications: &[Located<Application>], report: &Report) {
    let mut seen: Vec<(&str, &DeviceGroup)> = Vec::new();
    for application in applications {
        let Some(devices) = application.value.args.devices() else { continue };
        let group = &devices.group;
        if group.device_type == DeviceType::Cpu {
            continue;
        }
        match seen.iter().find(|(_, other)| other.name == group.name) {
            Some((first, other)) if other.ranks != group.ranks || other.device_type != group.device_type => {
                let message = format!(
                    "`device_group` `{}` of `{}` is not the one of `{first}`",
                    group.name, application.value.name
                );
                report.problem_with_hint(application.place, message, "give one of them another name");
            }
            Some(_) => {}
            None => seen.push((&application.value.name, group)),
        }
    }
}

/// Full training changes the base weights, so there can be one copy and one tenant.
fn exclusive_training(application: &Located<Application>, report: &Report) {
    let ApplicationArgs::Model(args) = &application.value.args else { return };
    let deployment = &application.value.deployment;
    let most = deployment.autoscaling.as_ref().map_or(deployment.num_replicas, |scaling| scaling.max_replicas);
    if args.train_mode == TrainMode::Full && most > 1 {
        let message = format!(
            "application `{}`: `train_mode: full` is an exclusive single-tenant mode and requires a single replica, \
             not {most}",
            application.value.name
        );
        report.problem(application.place, message);
    }
}

/// What is probably missing.
fn completeness(applications: &[Located<Application>], root: Place, report: &Report) {
    let servers: Vec<_> = applications
        .iter()
        .filter_map(|application| match &application.value.args {
            ApplicationArgs::Server(args) => Some((application.place, args)),
            _ => None,
        })
        .collect();
    if applications.is_empty() {
        report.warning(root, "no applications are configured");
    } else if servers.is_empty() {
        report.warning(root, "no `server` application is configured: the protocols' routes are missing");
    }
    for (place, server) in servers {
        for name in server.supported_models.iter().flatten() {
            let is_served = applications.iter().any(|application| match &application.value.args {
                ApplicationArgs::Model(args) => args.public_name == *name,
                ApplicationArgs::Sampler(args) => args.public_name == *name,
                ApplicationArgs::Server(_) | ApplicationArgs::Processor(_) => false,
            });
            if !is_served {
                report.warning(place, format!("`{name}` is in `supported_models`, but no application serves it"));
            }
        }
    }
}
