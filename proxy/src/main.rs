//! The process `leno-proxy`.

leno_runtime::use_jemalloc!("narenas:2");

fn main() -> std::process::ExitCode {
    leno_proxy::cli::main()
}
