//! Looks at the outside of a Wasm binary: is it a component, and what does it import and export by name?
//!
//! This reads the preamble and walks the top-level sections; it validates nothing else, which is the compiler's work. It
//! keeps a file that is no component from being pushed, and fills the config of an artifact.

const MAGIC: &[u8; 4] = b"\0asm";
const IMPORT_SECTION: u8 = 10;
const EXPORT_SECTION: u8 = 11;

/// Why some bytes are no component.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ComponentError {
    /// Not WebAssembly at all.
    #[error("not a WebAssembly binary")]
    NotWasm,
    /// WebAssembly, but a core module.
    #[error(
        "a core WebAssembly module, not a component (build for wasm32-wasip2, or use wasm-tools component new)"
    )]
    CoreModule,
    /// Something of another version.
    #[error("WebAssembly of an unknown version (version {version}, layer {layer})")]
    Version {
        /// The version field.
        version: u16,
        /// The layer field.
        layer: u16,
    },
    /// The binary ends early or its sections make no sense.
    #[error("a damaged component: {0}")]
    Damaged(&'static str),
}

/// The outside of a component.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// The names it imports.
    pub imports: Vec<String>,
    /// The names it exports.
    pub exports: Vec<String>,
}

impl Component {
    /// Looks at `binary`.
    pub fn parse(binary: &[u8]) -> Result<Component, ComponentError> {
        let rest = binary.strip_prefix(MAGIC).ok_or(ComponentError::NotWasm)?;
        let mut reader = Reader { rest };
        let preamble = reader.take(4)?;
        let version = u16::from_le_bytes([preamble[0], preamble[1]]);
        let layer = u16::from_le_bytes([preamble[2], preamble[3]]);
        match (version, layer) {
            (1, 0) => return Err(ComponentError::CoreModule),
            (13, 1) => {}
            _ => return Err(ComponentError::Version { version, layer }),
        }
        let mut component = Component { imports: Vec::new(), exports: Vec::new() };
        while !reader.rest.is_empty() {
            let id = reader.byte()?;
            let len = reader.number()? as usize;
            let mut section = Reader { rest: reader.take(len)? };
            match id {
                IMPORT_SECTION => section.names(&mut component.imports, Reader::skip_import)?,
                EXPORT_SECTION => section.names(&mut component.exports, Reader::skip_export)?,
                _ => {}
            }
        }
        Ok(component)
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], ComponentError> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or(ComponentError::Damaged("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, ComponentError> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned LEB128 of at most 32 bits.
    fn number(&mut self) -> Result<u32, ComponentError> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return u32::try_from(value).map_err(|_| ComponentError::Damaged("a number is too large"));
            }
        }
        Err(ComponentError::Damaged("a number is too long"))
    }

    fn text(&mut self) -> Result<&'a str, ComponentError> {
        let len = self.number()? as usize;
        std::str::from_utf8(self.take(len)?).map_err(|_| ComponentError::Damaged("a name is not UTF-8"))
    }

    /// A vector of names, each followed by something that `skip` steps over.
    fn names(
        &mut self,
        into: &mut Vec<String>,
        skip: fn(&mut Self) -> Result<(), ComponentError>,
    ) -> Result<(), ComponentError> {
        for _ in 0..self.number()? {
            let form = self.byte()?;
            into.push(self.text()?.to_owned());
            match form {
                0 | 1 => {}
                // A version suffix follows the name.
                2 => drop(self.text()?),
                _ => return Err(ComponentError::Damaged("an unknown form of name")),
            }
            skip(self)?;
        }
        Ok(())
    }

    fn skip_import(&mut self) -> Result<(), ComponentError> {
        let sort = self.byte()?;
        match sort {
            // A core module carries one byte more.
            0 => drop(self.byte()?),
            // A value or a type is bounded either by an index or by a value type, which is a number or a primitive.
            2 | 3 => {
                let bound = self.byte()?;
                if sort == 3 && bound == 1 {
                    return Ok(());
                }
            }
            1 | 4 | 5 => {}
            _ => return Err(ComponentError::Damaged("an unknown kind of import")),
        }
        self.number().map(drop)
    }

    fn skip_export(&mut self) -> Result<(), ComponentError> {
        if self.byte()? == 0 {
            self.byte()?;
        }
        self.number()?;
        match self.byte()? {
            0 => Ok(()),
            _ => self.skip_import(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREAMBLE: &[u8] = b"\0asm\x0d\0\x01\0";

    fn check(binary: &[u8], expect: Result<(&[&str], &[&str]), ComponentError>) {
        let strings = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let expect = expect.map(|(i, e)| Component { imports: strings(i), exports: strings(e) });
        assert_eq!(Component::parse(binary), expect, "{binary:?}");
    }

    #[test]
    fn the_preamble_tells_components_from_the_rest() {
        check(b"", Err(ComponentError::NotWasm));
        check(b"#!/bin/sh\necho", Err(ComponentError::NotWasm));
        check(b"\0asm\x01\0\0\0", Err(ComponentError::CoreModule));
        check(b"\0asm\x02\0\x09\0", Err(ComponentError::Version { version: 2, layer: 9 }));
        check(b"\0asm\x0d", Err(ComponentError::Damaged("it ends too early")));
        check(PREAMBLE, Ok((&[], &[])));
    }

    #[test]
    fn names_of_imports_and_exports_are_read() {
        let mut binary = PREAMBLE.to_vec();
        // A custom section to step over, an imported instance, an imported type bounded by a resource, an exported
        // instance with a type ascribed.
        binary.extend(b"\x00\x03\x01xy");
        binary.extend(b"\x0a\x0d\x02\x00\x03a:b\x05\x07\x00\x01r\x03\x01");
        binary.extend(b"\x0b\x0b\x01\x00\x03c:d\x05\x02\x01\x05\x01");
        check(&binary, Ok((&["a:b", "r"], &["c:d"])));
        for end in PREAMBLE.len() + 1..binary.len() {
            // Cutting between sections is not noticed; anywhere else it is. Nothing panics.
            let _ = Component::parse(&binary[..end]);
        }
    }
}
