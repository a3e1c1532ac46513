//! Writes the model in a GGUF file as a Hugging Face folder:
//! `cargo run -p twinkle-hub --example convert_gguf -- MODEL.gguf FOLDER`.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(gguf), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("give a GGUF file and the folder to write".into());
    };
    twinkle_hub::gguf::convert(Path::new(&gguf), Path::new(&folder))?;
    Ok(())
}
