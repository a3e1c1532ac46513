//! Training requests and results in both codecs.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::json;
use super::proto;
use super::tensor;
use crate::call::{ForwardBackwardOutcome, Logprobs, LossSpec};
use crate::data::{Datum, TensorData, TokenIds};
use crate::error::{Error, Result};

/// The kind of output every loss has; SDKs show the part after the last `:`.
pub const OUTPUT_TYPE: &str = "ArrayRecord";

/// The name of the per-token log-probabilities in the outputs.
pub const LOGPROBS: &str = "logprobs";

/// A forward or forward-backward request, whatever bytes it came in.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardBackward {
    /// The training run.
    pub model_id: String,
    /// Its number in the run's order; `None`: in order of arrival.
    pub sequence: Option<u64>,
    /// Which of the session's own losses `custom` is.
    pub loss_id: Option<String>,
    /// The examples and the loss, or why they cannot be read: the run's order needs the number either way.
    pub content: Result<ForwardBackwardContent>,
}

/// What a forward or forward-backward request asks to compute.
#[derive(Clone, Debug, PartialEq)]
pub struct ForwardBackwardContent {
    /// The examples.
    pub data: Vec<Datum>,
    /// Which loss.
    pub loss: LossSpec,
    /// Whether gradients are accumulated.
    pub backward: bool,
}

// === impl requests ===

impl ForwardBackward {
    /// Reads the protobuf form.
    #[must_use]
    pub fn from_proto(request: proto::ForwardBackwardRequest) -> Self {
        let sequence = sequence_number(i64::from(request.seq_id));
        let mut loss_id = None;
        let content = sequence.as_ref().map_err(Clone::clone).and_then(|_| {
            let settings = proto_settings(request.loss_fn_config, &request.loss_fn_config_v2)?;
            let (loss, id) = with_settings(request.loss_fn, settings)?;
            loss_id = id;
            let mut budget = Budget::default();
            let data = numbered(request.data, |datum| datum_from_proto(&datum, &mut budget))?;
            Ok(ForwardBackwardContent { data, loss, backward: !request.forward_only })
        });
        Self { model_id: request.model_id, sequence: sequence.unwrap_or(None), loss_id, content }
    }

    /// Reads the JSON form; `backward` tells the two routes apart.
    #[must_use]
    pub fn from_json(
        model_id: String,
        sequence: Option<u64>,
        input: json::ForwardBackwardInput,
        backward: bool,
    ) -> Self {
        let mut loss_id = None;
        let settings = input.loss_fn_config.unwrap_or_default().into_iter();
        let content = with_settings(input.loss_fn, settings).and_then(|(loss, id)| {
            loss_id = id;
            let mut budget = Budget::default();
            let data = numbered(input.data, |datum| datum_from_json(datum, &mut budget))?;
            Ok(ForwardBackwardContent { data, loss, backward })
        });
        Self { model_id, sequence: sequence.filter(|number| *number > 0), loss_id, content }
    }
}

impl ForwardBackwardContent {
    /// Writes the protobuf form, for a client.
    #[must_use]
    pub fn to_proto(&self, model_id: &str, seq_id: i32) -> proto::ForwardBackwardRequest {
        let config = &self.loss.config;
        let number =
            |value: f64| proto::LossConfigValue { value: Some(proto::loss_config_value::Value::Number(value)) };
        proto::ForwardBackwardRequest {
            model_id: model_id.to_owned(),
            seq_id,
            data: self.data.iter().map(datum_to_proto).collect(),
            loss_fn: self.loss.name.clone(),
            loss_fn_config: config.clone(),
            forward_only: !self.backward,
            loss_fn_config_v2: config.iter().map(|(name, value)| (name.clone(), number(*value))).collect(),
        }
    }
}

/// A number from the wire: 0 means unnumbered, a negative one is an error.
fn sequence_number(number: i64) -> Result<Option<u64>> {
    let number = u64::try_from(number).map_err(|_| Error::invalid(format!("`seq_id` {number} is negative")))?;
    Ok((number > 0).then_some(number))
}

/// Converts each datum, naming the one that is wrong.
fn numbered<T>(data: Vec<T>, mut convert: impl FnMut(T) -> Result<Datum>) -> Result<Vec<Datum>> {
    if data.is_empty() {
        return Err(Error::invalid("`data` is empty").hint("send at least one datum"));
    }
    data.into_iter()
        .enumerate()
        .map(|(index, datum)| {
            convert(datum).map_err(|error| Error { message: format!("datum {index}: {}", error.message), ..error })
        })
        .collect()
}

/// What the sparse tensors of a request have taken when written out: a few bytes on the wire may mean millions of zeros.
#[derive(Default)]
struct Budget {
    cells: usize,
}

impl Budget {
    fn spend(&mut self, tensor: &TensorData) -> Result<()> {
        self.cells += tensor.len();
        if self.cells <= tensor::MAX_DENSE_CELLS {
            return Ok(());
        }
        let most = tensor::MAX_DENSE_CELLS;
        Err(Error::invalid(format!("the sparse tensors of this request have over {most} cells when written out"))
            .hint("send fewer datums in one request, or fewer candidates per position"))
    }
}

fn datum_from_proto(datum: &proto::Datum, budget: &mut Budget) -> Result<Datum> {
    let mut inputs = BTreeMap::new();
    for (name, value) in &datum.loss_fn_inputs {
        let dense = tensor::from_proto(value).map_err(|error| in_input(name, error))?;
        if let Some(proto::tensor::Encoding::SparseCsr(_)) = value.encoding {
            budget.spend(&dense)?;
        }
        inputs.insert(name.clone(), dense);
    }
    Ok(Datum { tokens: tokens_from_proto(&datum.model_input)?, loss_inputs: inputs })
}

fn datum_to_proto(datum: &Datum) -> proto::Datum {
    let chunk =
        proto::chunk::Chunk::EncodedText(proto::EncodedTextChunk { tokens: tensor::token_bytes(&datum.tokens) });
    proto::Datum {
        model_input: vec![proto::Chunk { chunk: Some(chunk) }],
        loss_fn_inputs: datum.loss_inputs.iter().map(|(name, value)| (name.clone(), tensor::to_proto(value))).collect(),
        model_input_spans: Vec::new(),
        loss_fn_input_spans: Vec::new(),
    }
}

fn datum_from_json(datum: json::Datum, budget: &mut Budget) -> Result<Datum> {
    let mut inputs = BTreeMap::new();
    for (name, value) in datum.loss_fn_inputs {
        let is_sparse = value.sparse_crow_indices.is_some();
        let dense = tensor::from_json(value).map_err(|error| in_input(&name, error))?;
        if is_sparse {
            budget.spend(&dense)?;
        }
        inputs.insert(name, dense);
    }
    Ok(Datum { tokens: datum.model_input.into_tokens()?, loss_inputs: inputs })
}

fn in_input(name: &str, error: Error) -> Error {
    Error { message: format!("loss input `{name}`: {}", error.message), ..error }
}

/// Text chunks are one sequence; chunk borders mean nothing.
fn tokens_from_proto(chunks: &[proto::Chunk]) -> Result<TokenIds> {
    let mut all = Vec::new();
    for chunk in chunks {
        match &chunk.chunk {
            Some(proto::chunk::Chunk::EncodedText(text)) => all.extend(tensor::tokens(&text.tokens)?),
            Some(proto::chunk::Chunk::Image(_)) => return Err(unsupported_chunk("image")),
            Some(proto::chunk::Chunk::Dmel(_)) => return Err(unsupported_chunk("dmel")),
            None => return Err(Error::invalid("a chunk of the model input is empty or of an unknown kind")),
        }
    }
    Ok(all)
}

/// The answer to a model input that is not text.
pub(super) fn unsupported_chunk(kind: &str) -> Error {
    Error::unsupported(format!("model inputs with `{kind}` chunks are not supported")).hint("send text tokens only")
}

/// The second generation of settings wins when it has any.
fn proto_settings(
    numbers: BTreeMap<String, f64>,
    values: &BTreeMap<String, proto::LossConfigValue>,
) -> Result<Vec<(String, json::LossSetting)>> {
    if values.is_empty() {
        return Ok(numbers.into_iter().map(|(name, number)| (name, json::LossSetting::Number(number))).collect());
    }
    let setting = |(name, value): (&String, &proto::LossConfigValue)| match &value.value {
        Some(proto::loss_config_value::Value::Number(number)) => Ok((name.clone(), json::LossSetting::Number(*number))),
        Some(proto::loss_config_value::Value::Text(text)) => Ok((name.clone(), json::LossSetting::Text(text.clone()))),
        None => Err(Error::invalid(format!("loss setting `{name}` has no value"))),
    };
    values.iter().map(setting).collect()
}

/// The loss with its numbers. Only the id of a custom loss is a text.
fn with_settings(
    name: String,
    settings: impl IntoIterator<Item = (String, json::LossSetting)>,
) -> Result<(LossSpec, Option<String>)> {
    let mut loss = LossSpec { name, ..LossSpec::default() };
    let mut loss_id = None;
    for (setting, value) in settings {
        match value {
            json::LossSetting::Number(number) => {
                loss.config.insert(setting, number);
            }
            json::LossSetting::Text(text) if loss.name == "custom" && setting == "loss_id" => loss_id = Some(text),
            json::LossSetting::Text(_) => {
                return Err(Error::unsupported(format!("loss setting `{setting}` is a text"))
                    .hint("every setting is a number, but for `loss_id` of the loss `custom`"));
            }
        }
    }
    Ok((loss, loss_id))
}

// === impl results ===

/// Writes a result as protobuf: one record for each run of datums whose targets have the same number of candidates.
#[must_use]
pub fn outcome_to_proto(outcome: &ForwardBackwardOutcome) -> proto::ForwardBackwardOutput {
    proto::ForwardBackwardOutput {
        loss_fn_output_type: OUTPUT_TYPE.to_owned(),
        loss_fn_outputs: outcome
            .logprobs
            .chunk_by(|left, right| left.candidates == right.candidates)
            .map(|alike| proto::ArrayRecord {
                type_tag: OUTPUT_TYPE.to_owned(),
                fields: BTreeMap::from([(LOGPROBS.to_owned(), batched(alike))]),
                num_datums: alike.len() as i64,
            })
            .collect(),
        metrics: outcome.metrics.clone(),
    }
}

/// The log-probabilities of datums with the same number of candidates.
fn batched(alike: &[Logprobs]) -> proto::BatchedTensor {
    let count: usize = alike.iter().map(|logprobs| logprobs.values.len()).sum();
    let mut data = Vec::with_capacity(count * size_of::<f32>());
    let mut offsets = vec![0_i64];
    for logprobs in alike {
        data.extend(logprobs.values.iter().flat_map(|value| value.to_le_bytes()));
        offsets.push(data.len() as i64);
    }
    proto::BatchedTensor {
        data: Bytes::from(data),
        offsets: tensor::long_bytes(&offsets),
        dtype: proto::Dtype::Float32.into(),
        trailing_shape: alike
            .first()
            .and_then(|first| first.candidates)
            .map(|count| count as i64)
            .into_iter()
            .collect(),
    }
}

/// Reads a result, for a client; records are concatenated.
pub fn outcome_from_proto(output: &proto::ForwardBackwardOutput) -> Result<ForwardBackwardOutcome> {
    let mut logprobs = Vec::new();
    for record in &output.loss_fn_outputs {
        let field = record
            .fields
            .get(LOGPROBS)
            .ok_or_else(|| Error::internal(format!("the result has no field `{LOGPROBS}`")))?;
        let candidates = candidates_of(&field.trailing_shape)?;
        for array in unbatch(field)? {
            logprobs.push(Logprobs { values: tensor::floats(array)?, candidates });
        }
    }
    Ok(ForwardBackwardOutcome { logprobs, metrics: output.metrics.clone(), ..ForwardBackwardOutcome::default() })
}

fn candidates_of(trailing_shape: &[i64]) -> Result<Option<usize>> {
    let unreadable = || Error::internal(format!("a result has trailing shape {trailing_shape:?}"));
    match trailing_shape {
        [] => Ok(None),
        [count] => usize::try_from(*count).map(Some).map_err(|_| unreadable()),
        _ => Err(unreadable()),
    }
}

/// Cuts a batched float32 tensor at its byte offsets.
fn unbatch(batched: &proto::BatchedTensor) -> Result<Vec<&[u8]>> {
    if batched.dtype() != proto::Dtype::Float32 {
        return Err(Error::internal(format!("a result has dtype {:?} where float32 was expected", batched.dtype())));
    }
    let offsets = tensor::longs(&batched.offsets)?;
    let mut arrays = Vec::new();
    for bounds in offsets.windows(2) {
        let [start, end] = [bounds[0], bounds[1]].map(usize::try_from);
        let (Ok(start), Ok(end)) = (start, end) else {
            return Err(Error::internal("a result has a negative offset"));
        };
        let array = batched.data.get(start..end);
        arrays.push(array.ok_or_else(|| Error::internal("a result has an offset outside its data"))?);
    }
    Ok(arrays)
}

/// Writes a result as JSON, for SDKs before protobuf.
#[must_use]
pub fn outcome_to_json(outcome: &ForwardBackwardOutcome) -> json::ForwardBackwardOutput {
    let output = |logprobs: &Logprobs| {
        let count = logprobs.values.len();
        let shape = match logprobs.candidates {
            None => vec![count as i64],
            Some(candidates) => vec![(count / candidates.max(1)) as i64, candidates as i64],
        };
        let data = json::TensorNumbers::Float32(logprobs.values.clone());
        BTreeMap::from([(LOGPROBS.to_owned(), json::TensorData::dense(data, shape))])
    };
    json::ForwardBackwardOutput {
        loss_fn_output_type: OUTPUT_TYPE.to_owned(),
        loss_fn_outputs: outcome.logprobs.iter().map(output).collect(),
        metrics: outcome.metrics.clone(),
    }
}

#[cfg(test)]
#[path = "training_tests.rs"]
mod tests;
