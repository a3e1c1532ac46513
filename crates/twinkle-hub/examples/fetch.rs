//! Prints the folder of a model as a node would find it: `cargo run -p twinkle-hub --example fetch -- ms://org/name`.

use std::error::Error;
use std::io::Write;

use twinkle_core::config::ModelSource;
use twinkle_hub::{LibraryOptions, ModelLibrary};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let id =
        std::env::args().nth(1).ok_or("give a model: `ms://org/name`, `hf://org/name`, a folder or a GGUF file")?;
    let library = ModelLibrary::new(LibraryOptions::of_process()?)?;
    let folder = library.folder(&ModelSource::new(id)).await?;
    writeln!(std::io::stdout(), "{}", folder.display())?;
    Ok(())
}
