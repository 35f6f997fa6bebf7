//! A manifest inside a module: the custom section `coproc.manifest`, which engines ignore.
//!
//! `coproc build` puts it there, so that a module that is dropped into a folder says itself what it reads and writes.

use wasmparser::{Parser, Payload};

/// Name of the section.
pub const MANIFEST: &str = "coproc.manifest";

/// The manifest in a module, where it has one that is text. The last one counts.
pub fn manifest(module: &[u8]) -> Option<&str> {
    let sections = Parser::new(0).parse_all(module).filter_map(|payload| match payload {
        Ok(Payload::CustomSection(section)) if section.name() == MANIFEST => Some(section.data()),
        _ => None,
    });
    std::str::from_utf8(sections.last()?).ok()
}

/// The module with a manifest at its end.
pub fn with_manifest(module: &[u8], manifest: &str) -> Vec<u8> {
    let mut body = Vec::with_capacity(MANIFEST.len() + manifest.len() + 5);
    put_length(&mut body, MANIFEST.len());
    body.extend_from_slice(MANIFEST.as_bytes());
    body.extend_from_slice(manifest.as_bytes());
    let mut with = Vec::with_capacity(module.len() + body.len() + 6);
    with.extend_from_slice(module);
    with.push(0);
    put_length(&mut with, body.len());
    with.extend_from_slice(&body);
    with
}

/// An unsigned LEB128, as sections have it.
fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length >= 0x80 {
        out.push(length as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_goes_in_and_out() {
        let module = wat::parse_str("(module (func (export \"_start\")))").unwrap();
        assert_eq!(manifest(&module), None);
        let text = format!("name: x\ndescription: {}\n", "long ".repeat(100));
        let with = with_manifest(&module, &text);
        assert_eq!(manifest(&with), Some(text.as_str()));
        assert_eq!(manifest(&with_manifest(&with, "name: y\n")), Some("name: y\n"));
        assert_eq!(manifest(b"no module"), None);
    }
}
