//! The routes of the Tinker protocol, with what each takes and answers.

use http::StatusCode;
use twinkle_core::wire::tinker::{PROTOBUF, json};

use super::{Front, checkpoints, completions, custom_loss, downloads, idempotency, models, rest, retrieve, sampling};
use super::{session, session_directory, training, weights};
use crate::openapi::{Content, SchemaOf};
use crate::route_table::Route;

/// All of them, relative to the prefix they are mounted at.
pub(crate) fn routes() -> Vec<Route<Front>> {
    let mut routes = sessions();
    routes.extend(runs());
    routes.extend(samples());
    routes.extend(results());
    routes.extend(lists());
    routes.extend(files());
    routes
}

fn sessions() -> Vec<Route<Front>> {
    vec![
        Route::get("/healthz", session::health).about("Whether the server answers.").answers::<json::Health>(),
        Route::post("/client/config", session::client_config)
            .about("The switches that a client starts with.")
            .takes::<json::ClientConfigRequest>()
            .answers::<json::ClientConfig>(),
        Route::post("/client/dynamic_config", session::dynamic_config)
            .about("The switches that a client asks for again and again.")
            .takes::<json::ClientConfigRequest>()
            .answers::<json::DynamicConfig>(),
        Route::get("/get_server_capabilities", session::capabilities)
            .about("The base models on offer.")
            .answers::<json::ServerCapabilities>(),
        Route::post("/create_session", session::create)
            .about("Opens a session, to which runs and samplers belong.")
            .reads(idempotency::HEADER, "Sent again with the same value, it is the same session.")
            .takes::<json::CreateSession>()
            .answers::<json::SessionCreated>(),
        Route::post("/session_heartbeat", session::heartbeat)
            .about("Keeps a session open.")
            .takes::<json::Heartbeat>()
            .tells(&["type"]),
        Route::post("/sessions/{session}/finish", session::finish)
            .about("Ends a session; its checkpoints stay.")
            .takes::<json::FinishSession>()
            .answers_nothing(),
        Route::get("/sessions", session_directory::list)
            .about("The tenant's sessions, the newest first.")
            .answers::<json::SessionNames>(),
        Route::post("/sessions/search", session_directory::search)
            .about("The tenant's sessions that fit.")
            .takes::<json::SessionSearchRequest>()
            .answers::<json::SessionSearchResponse>(),
        Route::get("/sessions/{session}", session_directory::read)
            .about("The runs and samplers of a session.")
            .answers::<json::SessionContents>(),
        Route::put("/sessions/{session}/project", session_directory::assign_project)
            .about("Files a session under another project.")
            .takes::<json::AssignProject>()
            .answers_nothing(),
        Route::get("/sessions/{session}/trace_export", session_directory::trace_export)
            .about("Where a session's timeline is: this server keeps none.")
            .answers::<json::TraceExport>(),
        Route::post("/telemetry", session::telemetry)
            .about("Telemetry of a client, which is dropped.")
            .ignores_body()
            .answers::<json::TelemetryAnswer>(),
    ]
}

fn runs() -> Vec<Route<Front>> {
    vec![
        Route::post("/create_model", models::create)
            .about("Makes a training run. Result: `ModelCreated`.")
            .takes::<json::CreateModel>()
            .answers::<json::Future>(),
        Route::post("/get_info", models::info)
            .about("What a run trains.")
            .takes::<json::ModelRequest>()
            .answers::<json::ModelInfo>(),
        Route::post("/unload_model", models::unload)
            .about("Ends a run. Result: `ModelUnloaded`.")
            .takes::<json::ModelRequest>()
            .answers::<json::Future>(),
        Route::post("/forward_backward", training::forward_backward)
            .about("Adds gradients of a loss. Result: `ForwardBackwardOutput`.")
            .takes_or_protobuf::<json::ForwardBackward>()
            .answers::<json::Future>(),
        Route::post("/forward", training::forward)
            .about("A loss without gradients. Result: `ForwardBackwardOutput`.")
            .takes::<json::Forward>()
            .answers::<json::Future>(),
        Route::post("/optim_step", training::optim_step)
            .about("Updates the weights with the gradients. Result: `OptimStepOutput`.")
            .takes::<json::OptimStep>()
            .answers::<json::Future>(),
        Route::post("/create_custom_loss", custom_loss::create)
            .about("Keeps a loss that a client traced. Result: `CustomLossCreated`.")
            .takes::<json::CreateCustomLoss>()
            .answers::<json::Future>(),
        Route::post("/save_weights", weights::save)
            .about("Saves a checkpoint to train on from. Result: `WeightsSaved`.")
            .takes::<json::SaveWeights>()
            .answers::<json::Future>(),
        Route::post("/save_weights_for_sampler", weights::save_for_sampler)
            .about("Saves or publishes weights to sample from. Result: `WeightsSavedForSampler`.")
            .takes::<json::SaveWeightsForSampler>()
            .answers::<json::Future>(),
        Route::post("/save_weights_external", weights::save_external)
            .about("Saves files to be downloaded. Result: `WeightsSaved`.")
            .takes::<json::SaveWeightsExternal>()
            .answers::<json::Future>(),
        Route::post("/load_weights", weights::load)
            .about("Loads a checkpoint into a run, or makes a run of it. Result: `WeightsLoaded`.")
            .takes::<json::LoadWeights>()
            .answers::<json::Future>(),
        Route::post("/weights_info", weights::info)
            .about("What a checkpoint is of.")
            .takes::<json::WeightsInfoRequest>()
            .answers::<json::WeightsInfo>(),
    ]
}

fn samples() -> Vec<Route<Front>> {
    vec![
        Route::post("/create_sampling_session", sampling::create_session)
            .about("A place to sample from a base model or a checkpoint.")
            .takes::<json::CreateSamplingSession>()
            .answers::<json::SamplingSessionCreated>(),
        Route::get("/samplers/{sampler}", sampling::describe)
            .about("What a sampling session samples from.")
            .answers::<json::Sampler>(),
        Route::post("/asample", sampling::sample)
            .about("Draws samples. Result: `SampleResponse`.")
            .takes::<json::Sample>()
            .answers::<json::Future>(),
        Route::post("/join_sampling_session", completions::join)
            .about("A number of its own for a copy of a client.")
            .takes::<json::JoinSamplingSession>()
            .answers::<json::SamplingSessionJoined>(),
    ]
}

fn results() -> Vec<Route<Front>> {
    vec![
        Route::post("/retrieve_future", retrieve::retrieve)
            .about("The result of a request, for which it waits; protobuf for clients that accept it.")
            .takes::<json::RetrieveFuture>()
            .answers::<json::ForwardBackwardOutput>()
            .answers::<json::OptimStepOutput>()
            .answers::<json::SampleResponse>()
            .answers::<json::ModelCreated>()
            .answers::<json::ModelUnloaded>()
            .answers::<json::CustomLossCreated>()
            .answers::<json::WeightsSaved>()
            .answers::<json::WeightsSavedForSampler>()
            .answers::<json::WeightsLoaded>()
            .answers::<json::CompleteMetadata>()
            .answers::<json::RequestFailed>()
            .also(StatusCode::OK, "done", Content::Media(PROTOBUF))
            .also(StatusCode::REQUEST_TIMEOUT, "not yet: ask again", Content::Json(SchemaOf::of::<json::Pending>())),
        Route::post("/retrieve_futures", completions::retrieve)
            .about("Which samples have finished, for the next of which it waits.")
            .takes::<json::RetrieveFutures>()
            .answers::<json::FuturesRetrieved>(),
        Route::post("/cancel_future", completions::cancel)
            .about("Gives a sample up.")
            .takes::<json::CancelFuture>()
            .answers_nothing(),
    ]
}

fn lists() -> Vec<Route<Front>> {
    vec![
        Route::get("/training_runs", rest::runs)
            .about("The tenant's runs, the newest first.")
            .answers::<json::TrainingRuns>(),
        Route::get("/training_runs/{run}", rest::run).about("A run.").answers::<json::TrainingRun>(),
        Route::get("/training_runs/{run}/checkpoints", rest::run_checkpoints)
            .about("The checkpoints of a run.")
            .answers::<json::Checkpoints>(),
        Route::get("/checkpoints", rest::checkpoints)
            .about("The tenant's checkpoints, the newest first.")
            .answers::<json::Checkpoints>(),
    ]
}

fn files() -> Vec<Route<Front>> {
    vec![
        // A checkpoint's id has a slash in it: `weights/<name>`.
        Route::delete("/training_runs/{run}/checkpoints/{name}", checkpoints::delete_by_id)
            .about("Deletes a checkpoint, the slash in whose id is sent as `%2F`.")
            .answers_nothing(),
        Route::delete("/training_runs/{run}/checkpoints/{kind}/{name}", checkpoints::delete)
            .about("Deletes a checkpoint.")
            .answers_nothing(),
        Route::put("/training_runs/{run}/checkpoints/{kind}/{name}/ttl", checkpoints::keep)
            .about("How long a checkpoint is kept.")
            .takes::<json::CheckpointLifetime>()
            .answers_nothing(),
        Route::post("/training_runs/{run}/checkpoints/{kind}/{name}/publish", checkpoints::publish)
            .about("Lets every tenant read a checkpoint.")
            .answers_nothing(),
        Route::delete("/training_runs/{run}/checkpoints/{kind}/{name}/publish", checkpoints::unpublish)
            .about("Lets nobody else read a checkpoint any more.")
            .answers_nothing(),
        Route::get("/training_runs/{run}/checkpoints/{kind}/{name}/archive", checkpoints::archive)
            .about("A link to a checkpoint's files in one archive.")
            .also(StatusCode::FOUND, "the link is in `Location`, its end in `Expires`", Content::Nothing),
        Route::get(
            "/training_runs/{run}/checkpoints/{kind}/{name}/external_weights_urls",
            checkpoints::external_weights_urls,
        )
        .about("Links to the files of an export.")
        .answers::<json::ExternalWeightsUrls>(),
        Route::post("/copy_weights", checkpoints::copy)
            .about("Copies a checkpoint.")
            .reads(idempotency::HEADER, "Sent again with the same value, it is the same copy.")
            .takes::<json::CopyWeights>()
            .answers::<json::WeightsCopied>(),
        Route::get("/downloads/{run}/{kind}/{name}/{file}", downloads::download)
            .about("A file, by a link with a signature; parts of it by `Range`.")
            .also(StatusCode::OK, "the file", Content::Media("application/octet-stream"))
            .also(StatusCode::PARTIAL_CONTENT, "a part of the file", Content::Media("application/octet-stream")),
    ]
}
