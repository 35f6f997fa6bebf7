//! The generated code is what the proto says. `UPDATE=1` rewrites it.

use std::path::Path;

#[test]
fn the_generated_code_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors =
        protox::compile([root.join("proto/coproc/log/v1/log.proto")], [root.join("proto")]).unwrap();
    let out = tempfile::tempdir().unwrap();
    tonic_prost_build::configure()
        .build_transport(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .unwrap();
    let generated = std::fs::read_to_string(out.path().join("coproc.log.v1.rs")).unwrap();
    let checked_in = root.join("src/log/socket/generated.rs");
    #[expect(clippy::disallowed_methods, reason = "the developer says whether to rewrite")]
    if std::env::var("UPDATE").is_ok() {
        std::fs::write(&checked_in, &generated).unwrap();
    }
    let found = std::fs::read_to_string(&checked_in).unwrap_or_default();
    assert!(
        found == generated,
        "run `UPDATE=1 cargo test --lib log::socket` to rewrite {}",
        checked_in.display()
    );
}
