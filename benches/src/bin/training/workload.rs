//! What one step trains on.

use serde_json::{Value, json};

/// The lengths of one step's sequences, in tokens.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// How it is called in the report.
    pub(crate) name: String,
    /// One per sequence.
    pub(crate) lengths: Vec<usize>,
}

impl Workload {
    /// `count` sequences of one length.
    pub(crate) fn equal(count: usize, length: usize) -> Self {
        Self { name: format!("{count} × {length}"), lengths: vec![length; count] }
    }

    /// Lengths as in chat data: most are short, a few are long. Every program pads or packs them as it does.
    pub(crate) fn mixed() -> Self {
        Self { name: "mixed".to_owned(), lengths: vec![37, 64, 91, 128, 180, 256, 410, 512] }
    }

    /// Trained tokens; padding does not count.
    pub(crate) fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// The datums: the same pseudo-random tokens as `hf_peft.py`, `(7919 · row + 104729 · column) mod 32000 + 100`.
    pub(crate) fn datums(&self) -> Vec<Value> {
        let token = |row: usize, column: usize| (7919 * row + 104_729 * column) % 32_000 + 100;
        let datum = |(row, length): (usize, &usize)| {
            let inputs: Vec<usize> = (0..*length).map(|column| token(row, column)).collect();
            let targets: Vec<usize> = (1..=*length).map(|column| token(row, column)).collect();
            json!({
                "model_input": { "chunks": [{ "tokens": inputs }] },
                "loss_fn_inputs": {
                    "target_tokens": { "data": targets, "dtype": "int64" },
                    "weights": { "data": vec![1.0; *length], "dtype": "float32" },
                },
            })
        };
        self.lengths.iter().enumerate().map(datum).collect()
    }
}
