//! What a file is, by its bytes: a core module, a component, or something that must not come in.
//!
//! Names in manifests and configs are claims; what counts is recomputed here.

use std::collections::BTreeSet;

use serde::Serialize;
use wasmparser::{Encoding, Parser, Payload};

/// Kind of a WebAssembly binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BinaryKind {
    /// A core module.
    Module,
    /// A component.
    Component,
}

/// Which guest contract a binary follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contract {
    /// The transform ABI of Redpanda's SDKs.
    Transform,
    /// The WIT world of this project.
    Component,
    /// `wasmcloud:messaging/handler`.
    Messaging,
    /// None that is known here.
    Unknown,
}

/// What a binary asks for and offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Interface {
    /// Its kind.
    pub kind: BinaryKind,
    /// The contract it follows.
    pub contract: Contract,
    /// What it imports: `module.name` for core modules, interface names for components.
    pub imports: BTreeSet<String>,
    /// What it exports.
    pub exports: BTreeSet<String>,
}

const MAGIC: &[u8] = b"\0asm";

/// The kind, by the first eight bytes; what it is instead, when it is neither.
pub fn kind_of(bytes: &[u8]) -> Result<BinaryKind, String> {
    match bytes {
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(BinaryKind::Module),
        [0, b'a', b's', b'm', _, 0, 1, 0, ..] => Ok(BinaryKind::Component),
        [] => Err("it is empty".to_owned()),
        _ if bytes.starts_with(b"\x7fELF") => {
            Err("it is an ELF file, which is how precompiled modules (.cwasm) look too: \
             only WebAssembly itself is taken from outside"
                .to_owned())
        }
        _ if bytes.starts_with(b"PK\x03\x04") => Err("it is a zip archive".to_owned()),
        _ if bytes.starts_with(b"\x1f\x8b") => Err("it is compressed with gzip".to_owned()),
        _ if bytes.starts_with(MAGIC) => Err("it has a version that is not known".to_owned()),
        _ => Err(format!("it begins with {:02x?}", &bytes[..bytes.len().min(8)])),
    }
}

/// Reads the outermost imports and exports. The caller bounds the size.
pub fn interface_of(bytes: &[u8]) -> Result<Interface, String> {
    let kind = kind_of(bytes)?;
    let (mut imports, mut exports) = (BTreeSet::new(), BTreeSet::new());
    let mut depth = 0usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload.map_err(|error| error.to_string())? {
            Payload::Version { encoding, .. } => {
                let is_module = encoding == Encoding::Module;
                if depth == 0 && is_module != (kind == BinaryKind::Module) {
                    return Err("its header contradicts itself".to_owned());
                }
                depth += 1;
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ImportSection(section) if depth == 1 => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| error.to_string())?;
                    imports.insert(format!("{}.{}", import.module, import.name));
                }
            }
            Payload::ExportSection(section) if depth == 1 => {
                for export in section {
                    exports.insert(export.map_err(|error| error.to_string())?.name.to_owned());
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for import in section {
                    imports.insert(import.map_err(|error| error.to_string())?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    exports.insert(export.map_err(|error| error.to_string())?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    let contract = contract_of(kind, &imports, &exports);
    Ok(Interface { kind, contract, imports, exports })
}

fn contract_of(kind: BinaryKind, imports: &BTreeSet<String>, exports: &BTreeSet<String>) -> Contract {
    let any = |names: &BTreeSet<String>, prefix: &str| names.iter().any(|name| name.starts_with(prefix));
    match kind {
        BinaryKind::Module if any(imports, "redpanda_transform.") => Contract::Transform,
        BinaryKind::Component if any(exports, "coproc:transform/") => Contract::Component,
        BinaryKind::Component if any(exports, "wasmcloud:messaging/handler@") => Contract::Messaging,
        _ => Contract::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_webassembly_passes() {
        assert_eq!(kind_of(b"\0asm\x01\0\0\0"), Ok(BinaryKind::Module));
        assert_eq!(kind_of(b"\0asm\x0d\0\x01\0"), Ok(BinaryKind::Component));
        for (bytes, word) in [
            (&b""[..], "empty"),
            (b"\x7fELF\x02\x01\x01\0", "precompiled"),
            (b"PK\x03\x04....", "zip"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (b"\0asm\x07\0\0\0", "version"),
            (b"\0as", "begins"),
        ] {
            assert!(kind_of(bytes).unwrap_err().contains(word), "{bytes:?}");
        }
    }

    #[test]
    fn interfaces_are_read_from_the_bytes() {
        let module = wat::parse_str(
            r#"(module (import "redpanda_transform" "check_abi_version_1" (func)) (memory (export "memory") 1))"#,
        )
        .unwrap();
        let interface = interface_of(&module).unwrap();
        assert_eq!(interface.contract, Contract::Transform);
        assert_eq!(interface.imports, BTreeSet::from(["redpanda_transform.check_abi_version_1".to_owned()]));
        assert_eq!(interface.exports, BTreeSet::from(["memory".to_owned()]));

        let component = wat::parse_str(
            r#"(component (import "wasi:cli/environment@0.2.0" (instance $i))
                 (core module (import "inner" "hidden" (func)))
                 (export "wasmcloud:messaging/handler@0.2.0" (instance $i)))"#,
        )
        .unwrap();
        let interface = interface_of(&component).unwrap();
        assert_eq!((interface.kind, interface.contract), (BinaryKind::Component, Contract::Messaging));
        assert_eq!(interface.imports, BTreeSet::from(["wasi:cli/environment@0.2.0".to_owned()]));

        assert!(interface_of(&module[..module.len() - 3]).is_err());
    }
}
