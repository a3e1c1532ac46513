//! The component: answers [`ProcessRequest`]s for the models of a deployment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tower::Service;
use twinkle_core::call::{Call, EncodedText, Operation, ProcessOutcome, ProcessRequest, Reply};
use twinkle_core::component::{Component, ComponentKind, Health, Lifecycle, misrouted};
use twinkle_core::config::ProcessorArgs;
use twinkle_core::error::{Error, ErrorCode, Result, suggestion};
use twinkle_core::ids::TenantId;
use twinkle_core::state::StateStore;

use crate::data::Places;
use crate::limits::{check_conversations, check_sequences, check_texts};
use crate::objects::{Answered, Hands, Limits, Registry, call, create};
use crate::tokenizer::ModelTokenizer;

/// What the launcher hands the component besides its arguments.
#[derive(Clone, Debug, Default)]
pub struct ProcessorContext {
    /// The folder of each served model, by public name.
    pub models: BTreeMap<String, PathBuf>,
    /// Where data sets may lie.
    pub places: Places,
    /// Who knows which sessions are silent; without it objects live as long as the node.
    pub sessions: Option<StateStore>,
    /// `TWINKLE_SEED`: what orders of rows are made from.
    pub seed: Option<u32>,
}

/// Chat templates and tokenization; a cheap handle.
///
/// The work runs on blocking threads, as many at once as `ncpu_proc_per_node` says.
#[derive(Clone, Debug)]
pub struct Processor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    models: Arc<BTreeMap<String, Arc<ModelTokenizer>>>,
    workers: Arc<Semaphore>,
    worker_count: u32,
    draining: AtomicBool,
    objects: Arc<Registry>,
    hands: Hands,
}

impl Component for Processor {
    type Args = ProcessorArgs;
    type Context = ProcessorContext;

    async fn build(args: ProcessorArgs, context: ProcessorContext) -> Result<Self> {
        let models = Arc::new(on_a_blocking_thread(move || load_models(context.models)).await?);
        let cores = || std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
        let worker_count = args.workers.unwrap_or_else(cores).max(1);
        let workers = Arc::new(Semaphore::new(worker_count as usize));
        let objects = Registry::new(Limits {
            per_tenant: args.per_token_processor_limit as usize,
            silence: Duration::try_from_secs_f64(args.processor_timeout).unwrap_or(Duration::MAX),
        });
        if let Some(store) = context.sessions {
            tokio::spawn(Registry::sweep_periodically(Arc::downgrade(&objects), store));
        }
        let hands = Hands {
            places: Arc::new(context.places),
            models: Arc::clone(&models),
            workers: Arc::clone(&workers),
            long_work: Arc::new(Semaphore::new(worker_count.saturating_sub(1).max(1) as usize)),
            seed: context.seed,
        };
        let draining = AtomicBool::new(false);
        Ok(Self { shared: Arc::new(Shared { models, workers, worker_count, draining, objects, hands }) })
    }
}

impl Service<Call> for Processor {
    type Response = Reply;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Reply>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let Operation::Process(request) = call.operation else {
                return Err(misrouted(ComponentKind::Processor, call.operation.name()));
            };
            if shared.draining.load(Ordering::Acquire) {
                return Err(Error::new(ErrorCode::Draining, "the node is shutting down"));
            }
            if request.is_about_objects() {
                return shared.object(&call.tenant, request).await.map(Reply::Process);
            }
            let model = Arc::clone(shared.model(request.model())?);
            let closed = |_| Error::new(ErrorCode::Draining, "the node is shutting down");
            let worker = Arc::clone(&shared.workers).acquire_owned().await.map_err(closed)?;
            // The worker's permit goes with the work: a client that leaves does not free a thread that is still busy.
            let work = move || {
                let outcome = process(&model, request);
                drop(worker);
                outcome
            };
            on_a_blocking_thread(work).await.map(Reply::Process)
        })
    }
}

impl Lifecycle for Processor {
    fn kind(&self) -> ComponentKind {
        ComponentKind::Processor
    }

    fn health(&self) -> Health {
        if self.shared.draining.load(Ordering::Acquire) { Health::Draining } else { Health::Ready }
    }

    fn drain(&self, limit: Duration) -> BoxFuture<'static, ()> {
        let shared = Arc::clone(&self.shared);
        shared.draining.store(true, Ordering::Release);
        Box::pin(async move {
            // All permits free means that nothing is being worked on; past the limit the rest is abandoned.
            let _ = tokio::time::timeout(limit, shared.workers.acquire_many(shared.worker_count)).await;
        })
    }
}

impl Shared {
    /// Makes, calls or keeps objects.
    async fn object(&self, tenant: &TenantId, request: ProcessRequest) -> Result<ProcessOutcome> {
        match request {
            ProcessRequest::Create { session, kind, class, arguments } => {
                let owner = (tenant, &session);
                create(&self.objects, &self.hands, owner, (&kind, &class), arguments).await.map(ProcessOutcome::Created)
            }
            ProcessRequest::CallObject { object, function, arguments } => {
                let asked = (object.as_str(), function.as_str());
                match call(&self.objects, &self.hands, tenant, asked, arguments).await? {
                    Answered::Value(value) => Ok(ProcessOutcome::Answered(value.get().to_owned())),
                    Answered::Exhausted => Ok(ProcessOutcome::Exhausted),
                }
            }
            ProcessRequest::KeepObjects { objects } => {
                for object in &objects {
                    drop(self.objects.find(tenant, object));
                }
                Ok(ProcessOutcome::Answered("null".to_owned()))
            }
            _ => Err(Error::internal("text work is not about objects")),
        }
    }

    /// The named model, or the only one.
    fn model(&self, name: Option<&str>) -> Result<&Arc<ModelTokenizer>> {
        let known: Vec<&str> = self.models.keys().map(String::as_str).collect();
        if known.is_empty() {
            return Err(Error::unsupported("this node serves no model, so there is no tokenizer")
                .hint("add a `model` or `sampler` application to its configuration"));
        }
        if let Some(name) = name {
            return self.models.get(name).ok_or_else(|| {
                Error::unsupported(format!("base model `{name}` is not served here"))
                    .hint(suggestion(name, "models", &known))
            });
        }
        let mut models = self.models.values();
        match (models.next(), models.next()) {
            (Some(only), None) => Ok(only),
            _ => Err(Error::invalid("the request names no model, and several are served")
                .hint(suggestion("", "models", &known))),
        }
    }
}

/// Loads each folder once, however many names it has.
fn load_models(folders: BTreeMap<String, PathBuf>) -> Result<BTreeMap<String, Arc<ModelTokenizer>>> {
    let mut by_folder: BTreeMap<PathBuf, Arc<ModelTokenizer>> = BTreeMap::new();
    let mut models = BTreeMap::new();
    for (name, folder) in folders {
        let tokenizer = match by_folder.get(&folder) {
            Some(loaded) => Arc::clone(loaded),
            None => Arc::new(ModelTokenizer::load(&folder)?),
        };
        by_folder.insert(folder, Arc::clone(&tokenizer));
        models.insert(name, tokenizer);
    }
    Ok(models)
}

fn process(model: &ModelTokenizer, request: ProcessRequest) -> Result<ProcessOutcome> {
    match request {
        ProcessRequest::EncodeChat { conversations, add_generation_prompt, .. } => {
            check_conversations(&conversations)?;
            let mut encoded = Vec::with_capacity(conversations.len());
            for (index, conversation) in conversations.iter().enumerate() {
                let text = model.encode_chat(conversation, add_generation_prompt);
                encoded.push(text.map_err(|error| of_input("conversation", index, conversations.len(), error))?);
            }
            Ok(ProcessOutcome::Encoded(encoded))
        }
        ProcessRequest::Encode { texts, .. } => {
            check_texts(&texts)?;
            let mut encoded = Vec::with_capacity(texts.len());
            for (index, text) in texts.iter().enumerate() {
                let tokens = model.encode(text).map_err(|error| of_input("text", index, texts.len(), error))?;
                encoded.push(EncodedText { assistant_mask: vec![0; tokens.len()], tokens });
            }
            Ok(ProcessOutcome::Encoded(encoded))
        }
        ProcessRequest::Decode { sequences, skip_special_tokens, .. } => {
            check_sequences(&sequences)?;
            let mut texts = Vec::with_capacity(sequences.len());
            for (index, sequence) in sequences.iter().enumerate() {
                let text = model.decode(sequence, skip_special_tokens);
                texts.push(text.map_err(|error| of_input("sequence", index, sequences.len(), error))?);
            }
            Ok(ProcessOutcome::Decoded(texts))
        }
        _ => Err(Error::internal("a call of an object is not text work")),
    }
}

/// Says which of several inputs an error is about.
fn of_input(what: &str, index: usize, count: usize, mut error: Error) -> Error {
    if count > 1 {
        error.message = format!("{what} {index}: {}", error.message);
    }
    error
}

async fn on_a_blocking_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal(format!("text work was interrupted: {error}"))),
    }
}
