//! Compiles the protobuf messages of the Tinker protocol, in pure Rust: no `protoc` is needed.

#[cfg(feature = "wire")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FOLDER: &str = "src/wire/tinker";
    const FILE: &str = "src/wire/tinker/tinker_public.proto";
    println!("cargo::rerun-if-changed={FILE}");
    let descriptors = protox::compile([FILE], [FOLDER])?;
    prost_build::Config::new()
        // Arrays are slices of the request body: decoding copies nothing.
        .bytes(["."])
        // Ordered maps: the same message always has the same bytes.
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}

#[cfg(not(feature = "wire"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
