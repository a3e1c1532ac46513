//! What a client sets before it samples.
//!
//! A template belongs to the session that set it and to this model: no other tenant, and no other session of the same
//! tenant, sees it. It is kept with the adapters of the session, so it survives a restart as they do.

use axum::extract::State;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use twinkle_core::call::{AdapterRecord, AdapterSettings, NamedClass, ServeRequest};
use twinkle_core::error::{Error, Result};
use twinkle_core::ids::RunId;
use twinkle_processor::{Template, TemplateSpec};

use crate::twinkle::{Answer, Caller, Json, Tenant, TwinkleFront, ok};

/// `POST create`: only whether the sampler is there.
pub(super) async fn create(State(front): State<TwinkleFront>, Tenant(_): Tenant) -> Answer {
    front.model()?;
    done()
}

/// The body of `POST set_template`.
#[derive(Debug, Deserialize, JsonSchema)]
pub(super) struct SetTemplate {
    /// The template's class.
    template_cls: String,
    /// The template is that of the session, whatever its adapters are called.
    #[serde(default, rename = "adapter_name")]
    _adapter_name: Option<String>,
    #[serde(flatten)]
    settings: Map<String, Value>,
}

/// `POST set_template`
pub(super) async fn set_template(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(body): Json<SetTemplate>,
) -> Answer {
    let name = record_name(&front)?;
    TemplateSpec::named(&body.template_cls, &body.settings)?;
    let template = NamedClass { class: body.template_cls, settings: body.settings };
    let record = AdapterRecord {
        session: caller.session,
        run: RunId::new(name.as_str()),
        name,
        tenant: caller.tenant.clone(),
        settings: AdapterSettings { template: Some(template), ..AdapterSettings::default() },
        counters: Vec::new(),
    };
    front.serve(&caller.tenant, ServeRequest::KeepAdapter(Box::new(record))).await?;
    done()
}

/// The body of `POST add_adapter_to_sampler`.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(rename = "AddAdapterToSampler")]
pub(super) struct AddAdapter {
    adapter_name: String,
    config: Value,
}

/// `POST add_adapter_to_sampler`: the name is checked and told in full. An adapter that was never trained samples as its
/// base model does; trained ones are sampled by their `adapter_uri`.
pub(super) async fn add_adapter(
    State(front): State<TwinkleFront>,
    caller: Caller,
    Json(body): Json<AddAdapter>,
) -> Answer {
    front.model()?;
    let run = RunId::of_adapter(&caller.session, &body.adapter_name)?;
    let is_config = match &body.config {
        Value::Object(_) => true,
        Value::String(text) => serde_json::from_str::<Map<String, Value>>(text).is_ok(),
        _ => false,
    };
    if !is_config {
        return Err(Error::invalid("`config` is no LoRA configuration")
            .hint("send an object, or its JSON text")
            .into());
    }
    ok(&json!({ "status": "ok", "adapter_name": run }))
}

/// `POST apply_patch`: a patch is Python code.
pub(super) async fn apply_patch(Tenant(_): Tenant) -> Answer {
    Err(Error::unsupported("patches are Python code, which this server does not run")
        .hint("what patches are for, such as Qwen's chat templates, is built in")
        .into())
}

/// The template that the caller set here, else the one that fits the model.
pub(super) async fn template(front: &TwinkleFront, caller: &Caller) -> Result<Template> {
    let model = front.model()?;
    // Read from the store itself: what is set is looked up for every request, and should cost its tenant no quota.
    let record = front.context.store.adapter(&caller.tenant, &caller.session, &record_name(front)?).await?;
    let spec = match record.and_then(|record| record.settings.template) {
        Some(template) => TemplateSpec::named(&template.class, &template.settings)?,
        None => TemplateSpec::for_model(&model.name),
    };
    front.context.templates.load(&model.tokenizer, &spec).await
}

/// The name of the record: no adapter is called like this, because theirs have no `~`.
fn record_name(front: &TwinkleFront) -> Result<String> {
    Ok(format!("~sampler/{}", front.model()?.name))
}

fn done() -> Answer {
    ok(&json!({ "status": "ok" }))
}
