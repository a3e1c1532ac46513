//! One of everything a tenant can own.

use serde_json::{Value, json};
use twinkle_tests::TinkerHttp;

/// How every tenant calls its adapter of the native protocol.
pub(super) const ADAPTER: &str = "mine";

const TOKENS: [u32; 9] = [5, 9, 31, 7, 120, 44, 3, 250, 18];

/// The names of one tenant's objects, or of objects that never were.
#[derive(Clone, Debug)]
pub(super) struct Objects {
    pub(super) session: String,
    /// A session of the native protocol, with an adapter.
    pub(super) native_session: String,
    /// An object of the processor.
    pub(super) object: String,
    pub(super) run: String,
    /// A sampling session.
    pub(super) sampler: String,
    /// A finished training operation.
    pub(super) operation: String,
    /// A training operation that waits for one before it.
    pub(super) waiting: String,
    /// A finished sample.
    pub(super) sample: String,
    /// The name of a checkpoint to train from.
    pub(super) weights: String,
    /// The name of a checkpoint to sample from.
    pub(super) sampler_weights: String,
    /// The name of a checkpoint to download.
    pub(super) exported: String,
    /// A loss of the session's own.
    pub(super) custom_loss: String,
    /// Whose all this is, as the server shows it.
    owner: String,
}

impl Objects {
    /// Makes one of everything.
    pub(super) async fn make(client: &TinkerHttp, model: &str) -> Self {
        let run = client.create_run(model, 4, 1).await.expect("a run");
        let session = run.strip_suffix(":train:0").expect("the usual form").to_owned();
        let operation = client.submit_forward_backward(&run, 1, &TOKENS).await.expect("accepted");
        done(client, &operation).await;
        let (weights, sampler_weights) = (unique("kept", &session), unique("sold", &session));
        let save = json!({ "model_id": run, "path": weights, "seq_id": 2 });
        done(client, &client.submit("save_weights", &save).await.expect("accepted")).await;
        let save = json!({ "model_id": run, "path": sampler_weights, "seq_id": 3 });
        done(client, &client.submit("save_weights_for_sampler", &save).await.expect("accepted")).await;
        let exported = unique("sent", &session);
        let save = json!({ "model_id": run, "path": exported, "seq_id": 4 });
        done(client, &client.submit("save_weights_external", &save).await.expect("accepted")).await;
        let wanted = json!({
            "session_id": session,
            "sampling_session_seq_id": 0,
            "model_path": format!("tinker://{run}/sampler_weights/{sampler_weights}"),
        });
        let opened = client.ask("create_sampling_session", &wanted).await.expect("a sampling session");
        let sampler = opened["sampling_session_id"].as_str().expect("its id").to_owned();
        let sample = client.submit("asample", &super::cases::sample_of(&sampler)).await.expect("accepted");
        done(client, &sample).await;
        let wanted = super::cases::custom_loss_of(&session, 0);
        let request = client.submit("create_custom_loss", &wanted).await.expect("accepted");
        let created = client.result(&request).await.expect("a result");
        let custom_loss = created["loss_id"].as_str().expect("its id").to_owned();
        let waiting = client.submit_forward_backward(&run, 100, &TOKENS).await.expect("accepted");
        let opened = client.ask("twinkle/create_session", &json!({ "metadata": null })).await.expect("a session");
        let native_session = opened["session_id"].as_str().expect("its id").to_owned();
        let native = client.in_session(&native_session);
        let adapter = json!({ "adapter_name": ADAPTER, "config": { "r": 4, "target_modules": "all-linear" } });
        native.ask(&format!("model/{model}/twinkle/add_adapter_to_model"), &adapter).await.expect("an adapter");
        let optimizer = json!({ "adapter_name": ADAPTER, "optimizer_cls": "AdamW", "lr": 0.0 });
        native.ask(&format!("model/{model}/twinkle/set_optimizer"), &optimizer).await.expect("an optimizer");
        let made = native.ask("processor/twinkle/create", &super::native::data_set()).await.expect("a data set");
        let object = made["processor_id"].as_str().expect("its id").to_owned();
        let described = client.get(&format!("training_runs/{run}")).await.expect("the run");
        let owner = described["model_owner"].as_str().expect("its owner").to_owned();
        Self {
            session,
            native_session,
            object,
            run,
            sampler,
            operation,
            waiting,
            sample,
            weights,
            sampler_weights,
            exported,
            custom_loss,
            owner,
        }
    }

    /// Names like these with nothing behind them, as long as these to the letter.
    pub(super) fn absent(&self) -> Self {
        let session = other(&self.session);
        Self {
            run: self.run.replace(&self.session, &session),
            sampler: self.sampler.replace(&self.session, &session),
            operation: other(&self.operation),
            waiting: other(&self.waiting),
            sample: other(&self.sample),
            weights: other(&self.weights),
            sampler_weights: other(&self.sampler_weights),
            exported: other(&self.exported),
            custom_loss: self.custom_loss.replace(&self.session, &session),
            owner: other(&self.owner),
            native_session: turned_after(&self.native_session, '_'),
            object: turned_after(&self.object, ':'),
            session,
        }
    }

    /// Every name with its kind, names that contain others first.
    pub(super) fn names(&self) -> [(&'static str, String); 13] {
        [
            ("<run>", self.run.clone()),
            ("<sampler>", self.sampler.clone()),
            ("<custom loss>", self.custom_loss.clone()),
            ("<session>", self.session.clone()),
            ("<native session>", self.native_session.clone()),
            ("<object>", self.object.clone()),
            ("<operation>", self.operation.clone()),
            ("<waiting>", self.waiting.clone()),
            ("<sample>", self.sample.clone()),
            ("<weights>", self.weights.clone()),
            ("<sampler_weights>", self.sampler_weights.clone()),
            ("<exported>", self.exported.clone()),
            ("<owner>", self.owner.clone()),
        ]
    }

    /// The path of the checkpoint to train from.
    pub(super) fn weights_path(&self) -> String {
        format!("tinker://{}/weights/{}", self.run, self.weights)
    }

    /// The ids of all its checkpoints below their run.
    pub(super) fn checkpoint_ids(&self) -> [String; 3] {
        [
            format!("weights/{}", self.weights),
            format!("sampler_weights/{}", self.sampler_weights),
            format!("external_weights/{}", self.exported),
        ]
    }

    /// The path of the checkpoint to sample from.
    pub(super) fn sampler_weights_path(&self) -> String {
        format!("tinker://{}/sampler_weights/{}", self.run, self.sampler_weights)
    }
}

/// Waits for an operation that must succeed.
async fn done(client: &TinkerHttp, request: &str) {
    let result: Value = client.result(request).await.expect("a result");
    assert!(!result["error"].is_string(), "{result}");
}

/// A name no other tenant has.
fn unique(name: &str, session: &str) -> String {
    format!("{name}-{session}")
}

/// Another name of the same form: every hexadecimal digit after the last hyphen is another one.
fn other(name: &str) -> String {
    if name.contains('-') { turned_after(name, '-') } else { turned(name) }
}

/// The name with what stands after its last `mark` turned.
fn turned_after(name: &str, mark: char) -> String {
    let (start, end) = name.rsplit_once(mark).unwrap_or(("", name));
    format!("{start}{mark}{}", turned(end))
}

/// Every hexadecimal digit is another one.
fn turned(text: &str) -> String {
    let other = |letter: char| letter.to_digit(16).and_then(|digit| char::from_digit(15 - digit, 16)).unwrap_or(letter);
    text.chars().map(other).collect()
}
