//! Messages over a pipe: a length of four bytes, then as many bytes.

use std::io::{self, Read, Write};

/// Longest message. Longer ones would be refused at the other end.
pub(super) const LONGEST: usize = 256 << 20;

pub(super) fn write(out: &mut impl Write, message: &[u8]) -> io::Result<()> {
    if message.len() > LONGEST {
        let text = format!("a message of {} bytes, more than {LONGEST}", message.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    out.write_all(&(message.len() as u32).to_le_bytes())?;
    out.write_all(message)?;
    out.flush()
}

/// The next message; an error of the kind [`io::ErrorKind::UnexpectedEof`] if there is none.
pub(super) fn read(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut len = [0; 4];
    input.read_exact(&mut len)?;
    let len = u32::from_le_bytes(len) as usize;
    if len > LONGEST {
        let text = format!("a message of {len} bytes, more than {LONGEST}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut message = vec![0; len];
    input.read_exact(&mut message)?;
    Ok(message)
}
