//! Compiles the C++ shim against the libtorch that torch-sys found.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=shim/shim.cpp");
    println!("cargo::rerun-if-changed=shim/shim.h");
    println!("cargo::rerun-if-env-changed=LIBTORCH_INCLUDE");
    println!("cargo::rerun-if-env-changed=LIBTORCH_CXX11_ABI");

    // torch-sys has found a libtorch in one of its ways (LIBTORCH, LIBTORCH_USE_PYTORCH, the system's) and says where.
    let library_folder = std::env::var_os("DEP_TCH_LIBTORCH_LIB").map(PathBuf::from);
    let Some(library_folder) = library_folder else {
        println!("cargo::error=torch-sys did not say where libtorch is (`DEP_TCH_LIBTORCH_LIB` is not set)");
        return;
    };
    let root = std::env::var_os("LIBTORCH_INCLUDE")
        .map(PathBuf::from)
        .or_else(|| library_folder.parent().map(PathBuf::from))
        .unwrap_or_default();
    let include = root.join("include");
    if !include.join("torch").is_dir() {
        println!("cargo::error=there are no libtorch headers in `{}`", include.display());
        return;
    }
    let abi = std::env::var("LIBTORCH_CXX11_ABI").unwrap_or_else(|_| "1".to_owned());

    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .pic(true)
        .opt_level(2)
        .warnings(false)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        .file("shim/shim.cpp")
        .compile("twinkle_torch_shim");
    println!("cargo::rustc-link-search=native={}", library_folder.display());
    println!("cargo::rustc-link-lib=dylib=torch_cpu");
    println!("cargo::rustc-link-lib=dylib=c10");
}
