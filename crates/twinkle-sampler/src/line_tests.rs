//! The line over engines whose device is lost now and then.

use futures::future::join_all;
use twinkle_core::ErrorCode;
use twinkle_core::call::token_stream;
use twinkle_core::component::Health;

use super::*;
use crate::engine::tests::{LOST_TOKEN, Scripted, request};
use crate::scheduler::{FairScheduler, SchedulerLimits};

/// A line over engines whose device is lost `losses` times over prompts with [`LOST_TOKEN`].
fn line(losses: usize, in_decode: bool) -> Line {
    let limits =
        SchedulerLimits { seats: 4, kv_tokens: 2000, sequence_tokens: 0, step_tokens: 16, tile: 8, waiting: 100 };
    let scripted = Scripted::losing(losses, in_decode);
    let policy = RestartPolicy { first_pause: Duration::from_millis(1), ..RestartPolicy::default() };
    Line::start(policy, move || {
        let scheduler: Box<dyn Scheduler> = Box::new(FairScheduler::new(limits));
        (scripted.clone(), scheduler)
    })
    .unwrap()
}

fn question(prompt: &[u32]) -> Question {
    Question { tenant: TenantId::new("t"), request: request(prompt), weights: Weights::default() }
}

/// What five requests get together, the third of which may cost the device.
async fn answers(line: &Line) -> Vec<Result<SampleOutcome>> {
    let prompts = [[1, 2, 3], [4, 5, 6], [7, LOST_TOKEN, 8], [9, 10, 11], [12, 13, 14]];
    join_all(prompts.iter().map(|prompt| line.ask(question(prompt)))).await
}

#[tokio::test]
async fn a_lost_device_changes_no_token_of_anyone() {
    let expected = answers(&line(0, false)).await;
    assert!(expected.iter().all(Result::is_ok));
    for in_decode in [false, true] {
        let line = line(1, in_decode);
        assert_eq!(answers(&line).await, expected);
        assert_eq!(line.pulse().restarts(), 1);
        assert_eq!(line.pulse().health(), Health::Ready);
        line.drain(Duration::from_secs(10)).await;
        assert_eq!((line.stats().requests(), line.stats().cache_bytes()), (0, 0));
    }
}

#[tokio::test]
async fn a_request_that_takes_the_engine_with_it_twice_is_given_up_and_its_neighbours_are_not() {
    let expected = answers(&line(0, false)).await;
    for in_decode in [false, true] {
        let line = line(usize::MAX, in_decode);
        for (place, (answer, expected)) in answers(&line).await.into_iter().zip(&expected).enumerate() {
            if place == 2 {
                let error = answer.unwrap_err();
                assert_eq!(error.code, ErrorCode::Internal);
                assert!(error.message.contains("poison request"), "{error}");
            } else {
                assert_eq!(answer, *expected, "request {place}");
            }
        }
        assert!(line.ask(question(&[1, 2, 3])).await.is_ok());
        assert_eq!(line.pulse().restarts(), 2);
    }
}

#[tokio::test]
async fn what_a_stopping_node_has_not_sampled_is_to_be_asked_again() {
    let line = line(0, false);
    let mut endless = question(&[1, 2]);
    endless.request.max_new_tokens = 1900;
    let (answer, ()) = tokio::join!(line.ask(endless), line.drain(Duration::ZERO));
    assert_eq!(answer.unwrap_err().code, ErrorCode::Draining);
    assert_eq!(line.ask(question(&[1, 2])).await.unwrap_err().code, ErrorCode::Draining);
}

#[tokio::test]
async fn a_stream_goes_on_where_a_lost_engine_left_it() {
    let expected = line(0, false).ask(question(&[7, LOST_TOKEN, 8])).await.unwrap();
    for in_decode in [false, true] {
        let (sender, mut stream) = token_stream();
        let mut asked = question(&[7, LOST_TOKEN, 8]);
        asked.request.stream = Some(sender);
        assert_eq!(line(1, in_decode).ask(asked).await.unwrap(), expected);
        let mut tokens = Vec::new();
        while let Some(drawn) = stream.next().await {
            assert_eq!(drawn.place, tokens.len());
            tokens.push(drawn.token);
        }
        assert_eq!(tokens, expected.sequences[0].tokens);
    }
}
