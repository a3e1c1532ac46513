//! What every store promises, once for all kinds.
//!
//! For memory and file each promise is a test of its own. A database server is started once for all of them.

mod journal;
mod keeping;
mod native;
mod records;
mod samples;
mod weights;

use futures::future::LocalBoxFuture;

use crate::lab::Lab;

/// A promise: its name, and how to see whether a kind of store keeps it.
pub(crate) type Promise = (&'static str, for<'a> fn(&'a Lab) -> LocalBoxFuture<'a, ()>);

macro_rules! promises {
    ($($module:ident :: $name:ident,)+) => {
        pub(crate) const PROMISES: &[Promise] = &[$((stringify!($name), |lab| Box::pin($module::$name(lab)))),+];

        mod memory {
            use crate::lab::Lab;
            $(#[tokio::test]
            async fn $name() {
                super::$module::$name(&Lab::memory()).await;
            })+
        }

        mod file {
            use crate::lab::Lab;
            $(#[tokio::test]
            async fn $name() {
                super::$module::$name(&Lab::file()).await;
            })+
        }
    };
}

promises! {
    records::another_tenants_objects_look_absent_word_for_word,
    records::a_finished_session_takes_no_more_runs_or_heartbeats,
    records::a_sampling_session_is_made_once_and_refused_with_other_weights,
    records::sessions_without_runs_are_forgotten_when_their_clients_are_long_gone,
    records::checkpoints_are_listed_until_they_expire_or_are_deleted,
    records::runs_are_listed_newest_first_in_pages,
    records::limits_count_open_runs_and_records,
    records::silent_sessions_end_and_their_runs_are_due,
    records::api_keys_are_kept_in_order_and_forgotten,
    records::odd_texts_are_kept_or_refused_alone,
    weights::a_public_checkpoint_is_read_by_all_and_changed_by_its_owner,
    weights::a_lifetime_can_be_set_and_taken_away_until_it_is_over,
    weights::a_copy_comes_with_its_run_and_session_or_not_at_all,
    weights::sessions_are_listed_newest_first_with_what_belongs_to_them,
    weights::a_session_keeps_its_project_and_its_clients_last_word,
    samples::awaited_samples_are_known_until_they_are_forgotten_or_old,
    samples::every_client_that_joins_has_a_number_of_its_own,
    native::what_was_counted_belongs_to_a_run,
    native::an_upload_is_known_as_it_was_noted_last,
    journal::a_run_is_made_once,
    journal::many_writers_share_commits_and_each_gets_its_own_answer,
    journal::a_result_is_stored_once_and_a_later_one_is_ignored,
    journal::unloading_closes_the_run_and_fails_what_still_waits,
    journal::a_snapshot_drops_the_payloads_it_covers_and_names_the_one_it_replaces,
    journal::a_snapshot_waits_for_the_results_it_covers,
    journal::swept_numbers_stay_used_up_and_unfinished_or_uncovered_operations_stay,
    journal::numbers_are_used_up_by_refusals_gaps_and_results,
    journal::large_payloads_come_back_whole,
    keeping::everything_is_there_again_after_reopening,
    keeping::two_servers_cannot_share_a_store,
    keeping::clearing_forgets_every_record_of_this_store_only,
}

/// Sees one promise after the other kept by stores on one server.
async fn keeps_every_promise(lab: &Lab) {
    for (name, promise) in PROMISES {
        eprintln!("{name}");
        promise(lab).await;
    }
}

#[tokio::test]
async fn postgres_keeps_every_promise() {
    let Some(lab) = Lab::postgres() else { return };
    keeps_every_promise(&lab).await;
}

#[tokio::test]
async fn redis_keeps_every_promise() {
    let Some(lab) = Lab::redis() else { return };
    keeps_every_promise(&lab).await;
}
