//! The short form: `model:`, `server:` and `ray:` in place of a list of applications.
//!
//! It is read and checked as what it is, then written out as the applications it stands for, which are read like any
//! others. Every value written out keeps the place of what it came from.

use super::choices::choices;
use super::http::HttpOptions;
use super::model::read_model_id;
use super::model_source::{ModelLocation, ModelSource};
use super::section::{Located, Section};
use super::tree::{Entry, Node, Place, Value};

/// Where the short form listens.
const DEFAULT_HOST: &str = "0.0.0.0";

/// The number formats of the short form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dtype {
    Bfloat16,
    Float16,
    Float32,
}
choices!(Dtype {
    Bfloat16 = "bfloat16" | "bf16" | "torch.bfloat16",
    Float16 = "float16" | "fp16" | "torch.float16",
    Float32 = "float32" | "fp32" | "torch.float32",
});

/// What a file in the short form says.
pub(super) struct ShortForm {
    place: Place,
    model: ModelSource,
    use_megatron: bool,
    dtype: Dtype,
    tensor_parallel: u32,
    pipeline_parallel: u32,
    num_gpus: u32,
    num_replicas: Option<Located<u32>>,
}

impl ShortForm {
    /// Whether a file is written in the short form; one with applications beside it is reported.
    pub(super) fn is_used(root: &mut Section<'_>) -> bool {
        let has_applications = root.has("applications");
        let mut is_used = false;
        for key in ["model", "server", "ray"] {
            let Some(node) = root.node(key) else { continue };
            is_used = true;
            if has_applications {
                let message = format!("`{key}` belongs to the short form and cannot stand beside `applications`");
                root.report().problem(node.place, message);
            }
        }
        is_used && !has_applications
    }

    /// Reads the three sections, the listener into `http`; `None` after reporting.
    pub(super) fn read(root: &mut Section<'_>, http: &mut HttpOptions) -> Option<Self> {
        let num_replicas = read_server(root, http);
        let num_gpus = read_ray(root);
        let Some(mut model) = root.section("model") else {
            if !root.has("model") {
                root.missing("model");
            }
            return None;
        };
        let place = model.place();
        let source = read_model_id(&mut model);
        let use_megatron = model.boolean("use_megatron").is_some_and(|flag| flag.value);
        let dtype = model.choice::<Dtype>("torch_dtype").map_or(Dtype::Bfloat16, |dtype| dtype.value);
        let mut size = |key| model.integer::<u32>(key, 1..=65_536).map_or(1, |size| size.value);
        let (tensor_parallel, pipeline_parallel) = (size("tensor_parallel_size"), size("pipeline_parallel_size"));
        model.finish();

        let (source, num_gpus) = (source?, num_gpus?);
        let split = tensor_parallel.saturating_mul(pipeline_parallel);
        if !num_gpus.max(1).is_multiple_of(split) {
            let message = format!(
                "`tensor_parallel_size` times `pipeline_parallel_size` ({split}) must divide `num_gpus` ({num_gpus})"
            );
            root.report().problem(place, message);
            return None;
        }
        Some(Self {
            place,
            model: source,
            use_megatron,
            dtype,
            tensor_parallel,
            pipeline_parallel,
            num_gpus,
            num_replicas,
        })
    }

    /// The file it stands for: a mapping with `applications`.
    pub(super) fn expanded(&self) -> Node {
        let name = self.public_name();
        let applications = vec![
            self.application(
                "server",
                "server",
                "/api/v1",
                vec![("supported_models", self.list(vec![self.text(&name)]))],
            ),
            self.model_application(&name),
            self.sampler_application(&name),
            self.application(
                "processor",
                "processor",
                "/api/v1/processor",
                vec![("ncpu_proc_per_node", self.number(1))],
            ),
        ];
        self.mapping(vec![("applications", self.list(applications))])
    }

    fn model_application(&self, name: &str) -> Node {
        let workers = self.num_gpus.max(1) / (self.tensor_parallel * self.pipeline_parallel);
        let args = vec![
            ("model_id", self.text(self.model.as_str())),
            ("use_megatron", Node { place: self.place, value: Value::Boolean(self.use_megatron) }),
            ("torch_dtype", self.text(self.dtype_word())),
            ("device_group", self.device_group("model", 1)),
            (
                "device_mesh",
                self.mapping(vec![
                    ("dp_size", self.number(workers)),
                    ("tp_size", self.number(self.tensor_parallel)),
                    ("pp_size", self.number(self.pipeline_parallel)),
                ]),
            ),
        ];
        let mut application =
            self.application(&format!("model-{name}"), "model", &format!("/api/v1/model/{name}"), args);
        if let (Some(replicas), Value::Mapping(entries)) = (&self.num_replicas, &mut application.value) {
            let count = Node { place: replicas.place, value: Value::Integer(i64::from(replicas.value)) };
            let deployment = self.mapping(vec![("num_replicas", count)]);
            entries.push(self.entry("deployments", self.list(vec![deployment])));
        }
        application
    }

    /// One worker samples over as many devices as one copy of the model is split over for training.
    fn sampler_application(&self, name: &str) -> Node {
        let split = self.tensor_parallel * self.pipeline_parallel;
        let args = vec![
            ("model_id", self.text(self.model.as_str())),
            (
                "engine_args",
                self.mapping(vec![
                    ("enable_lora", Node { place: self.place, value: Value::Boolean(true) }),
                    ("dtype", self.text(self.dtype_word())),
                    ("tensor_parallel_size", self.number(split)),
                ]),
            ),
            ("device_group", self.device_group("sampler", split)),
            ("device_mesh", self.mapping(vec![("dp_size", self.number(self.num_gpus.max(1) / split))])),
        ];
        self.application(&format!("sampler-{name}"), "sampler", &format!("/api/v1/sampler/{name}"), args)
    }

    fn device_group(&self, name: &str, gpus_per_worker: u32) -> Node {
        let device_type = if self.num_gpus == 0 { "cpu" } else { "cuda" };
        self.mapping(vec![
            ("name", self.text(name)),
            ("ranks", self.number(self.num_gpus)),
            ("device_type", self.text(device_type)),
            ("gpus_per_worker", self.number(gpus_per_worker)),
        ])
    }

    /// What clients call the model: a hub's id, or the last part of a path.
    fn public_name(&self) -> String {
        match self.model.location() {
            Ok(ModelLocation::Local(path)) => {
                path.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
            }
            _ => self.model.public_name(),
        }
    }

    const fn dtype_word(&self) -> &'static str {
        match self.dtype {
            Dtype::Bfloat16 => "bfloat16",
            Dtype::Float16 => "float16",
            Dtype::Float32 => "float32",
        }
    }

    fn application(&self, name: &str, kind: &str, route_prefix: &str, args: Vec<(&str, Node)>) -> Node {
        self.mapping(vec![
            ("name", self.text(name)),
            ("route_prefix", self.text(route_prefix)),
            ("import_path", self.text(kind)),
            ("args", self.mapping(args)),
        ])
    }

    fn text(&self, text: &str) -> Node {
        Node { place: self.place, value: Value::Text(text.to_owned()) }
    }

    fn number(&self, number: u32) -> Node {
        Node { place: self.place, value: Value::Integer(i64::from(number)) }
    }

    fn list(&self, items: Vec<Node>) -> Node {
        Node { place: self.place, value: Value::List(items) }
    }

    fn entry(&self, key: &str, node: Node) -> Entry {
        Entry { key: key.to_owned(), place: self.place, node }
    }

    fn mapping(&self, entries: Vec<(&str, Node)>) -> Node {
        let entries = entries.into_iter().map(|(key, node)| self.entry(key, node)).collect();
        Node { place: self.place, value: Value::Mapping(entries) }
    }
}

/// Reads `server`: its listener wins over the defaults, and must agree with an `http_options` beside it.
fn read_server(root: &mut Section<'_>, http: &mut HttpOptions) -> Option<Located<u32>> {
    let given = root.node("http_options");
    let (told_host, told_port) = (given.and_then(|node| node.at(&["host"])), given.and_then(|node| node.at(&["port"])));
    let mut host = None;
    let mut port = None;
    let mut num_replicas = None;
    if let Some(mut server) = root.section("server") {
        host = server.filled_text("host");
        port = server.integer::<u16>("port", 0..=65_535);
        num_replicas = server.integer("num_replicas", 1..=65_536);
        server.finish();
    }
    let contradicts = |key: &str, place: Place| {
        root.report().problem(place, format!("`{key}` in `server` contradicts `{key}` in `http_options`"));
    };
    match (host, told_host) {
        (Some(host), Some(_)) if host.value != http.host => contradicts("host", host.place),
        (Some(host), _) => http.host = host.value,
        (None, None) => DEFAULT_HOST.clone_into(&mut http.host),
        (None, Some(_)) => {}
    }
    match (port, told_port) {
        (Some(port), Some(_)) if port.value != http.port => contradicts("port", port.place),
        (Some(port), _) => http.port = port.value,
        (None, _) => {}
    }
    num_replicas
}

/// Reads `ray`; `None` after reporting.
fn read_ray(root: &mut Section<'_>) -> Option<u32> {
    let Some(mut ray) = root.section("ray") else { return Some(1) };
    let is_given = ray.has("num_gpus");
    let number = ray.integer::<u32>("num_gpus", 0..=65_536);
    ray.finish();
    if is_given { number.map(|number| number.value) } else { Some(1) }
}
