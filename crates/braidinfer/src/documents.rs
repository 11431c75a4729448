//! The text of documents, which worker processes with limits read: such files are untrusted programs of a kind.

use std::time::Duration;

use pdf_extract::{Document, PlainTextOutput, output_doc};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteBuf, Bytes};

use crate::contained::contained;
use crate::containment::{CancelFlag, Failure, Process, Service, WorkKind, WorkLimits, WorkerProgram, message};
use crate::{Error, Result};

/// What reading one document may take.
const LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(30), memory: 512 << 20 };
/// Longest text in bytes: more than any context.
const MOST_TEXT: usize = 8 << 20;

/// The text of a document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentText {
    /// The text of all pages.
    pub text: String,
    /// Number of pages.
    pub pages: usize,
}

/// Reads the text of a PDF file in a worker process. `cancel` ends the work if nobody waits for it any more.
///
/// Fails if it cannot be read within limits, if it wants a password, and if it has no text, as scanned pages have none.
pub fn text_of_pdf(program: &WorkerProgram, file: &[u8], cancel: &CancelFlag) -> Result<DocumentText> {
    let refused = |found: String| Error::bad_request("document", "a PDF file with text", found);
    let setup = message::setup(WorkKind::Document, &()).map_err(Error::Internal)?;
    let request = message::pack(&Bytes::new(file)).map_err(Error::Internal)?;
    let started = Process::start(program, setup, LIMITS, cancel.clone());
    let (process, ready) = started.map_err(|failure| Error::Internal(failure.to_string()))?;
    ready.wait().map_err(|failure| Error::Internal(failure.to_string()))?;
    let reply = process.submit(request, LIMITS.time, cancel.clone()).wait();
    let reply = reply.map_err(|failure| match failure {
        Failure::Time(_) | Failure::Memory(_) | Failure::Stack => refused(failure.to_string()),
        // The reader may have crashed on it as well.
        Failure::Worker(_) | Failure::Cancelled => Error::Internal(format!("a document was not read: {failure}")),
    })?;
    message::reply(&reply).map_err(refused)
}

/// Reads one document after the other.
struct Reader;

impl Service for Reader {
    fn answer(&mut self, request: &[u8]) -> Vec<u8> {
        let file = message::unpack::<ByteBuf>(request);
        message::of_reply(&file.and_then(|file| read(&file)))
    }
}

/// The service that reads documents, and the reply that it is there.
pub(crate) fn document_service() -> (Option<Box<dyn Service>>, Vec<u8>) {
    (Some(Box::new(Reader)), message::of_reply(&Ok(())))
}

fn read(file: &[u8]) -> Result<DocumentText, String> {
    if !file.starts_with(b"%PDF-") {
        return Err("a file of another kind".into());
    }
    let read = contained(|| {
        let mut document = Document::load_mem(file).map_err(|error| format!("one that is damaged ({error})"))?;
        if document.is_encrypted() {
            document.decrypt("").map_err(|_| "one that wants a password".to_owned())?;
        }
        let (mut text, pages) = (String::new(), document.get_pages().len());
        output_doc(&document, &mut PlainTextOutput::new(&mut text))
            .map_err(|error| format!("one whose text cannot be read ({error})"))?;
        Ok::<_, String>((text, pages))
    });
    let (text, pages) = read.map_err(|panic| format!("one that its reader cannot take ({panic})"))??;
    if text.len() > MOST_TEXT {
        return Err(format!("one with more than {} MiB of text", MOST_TEXT >> 20));
    }
    match text.trim() {
        "" => Err(format!("pages without text, such as scanned ones ({pages})")),
        text => Ok(DocumentText { text: text.to_owned(), pages }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A document with one page.
    fn document(content: &str) -> Vec<u8> {
        let objects = [
            "<< /Type /Catalog /Pages 2 0 R >>".to_owned(),
            "<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_owned(),
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 200] /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>"
                .to_owned(),
            format!("<< /Length {} >>\nstream\n{content}\nendstream", content.len()),
            "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>".to_owned(),
        ];
        let (mut file, mut places) = ("%PDF-1.4\n".to_owned(), Vec::new());
        for (index, object) in objects.iter().enumerate() {
            places.push(file.len());
            file += &format!("{} 0 obj\n{object}\nendobj\n", index + 1);
        }
        let start = file.len();
        file += &format!("xref\n0 {}\n0000000000 65535 f \n", objects.len() + 1);
        places.iter().for_each(|place| file += &format!("{place:010} 00000 n \n"));
        file += &format!("trailer\n<< /Size {} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n", objects.len() + 1);
        file.into_bytes()
    }

    #[test]
    fn text_is_read_and_what_has_none_is_refused() {
        let found = read(&document("BT /F1 12 Tf 20 100 Td (Braids of three strands.) Tj ET")).expect("it has text");
        assert_eq!((found.text.as_str(), found.pages), ("Braids of three strands.", 1));
        for (file, says) in [
            (document(""), "pages without text"),
            (b"%PDF-1.4 and nothing else".to_vec(), "damaged"),
            (b"plain text".to_vec(), "another kind"),
        ] {
            let error = read(&file).expect_err("it has no text");
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn damaged_documents_end_no_process() {
        let whole = document("BT /F1 12 Tf 20 100 Td (text) Tj ET");
        for at in (0..whole.len()).step_by(7) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            // Its text may still be there; what matters is that it returns.
            let _ = read(&damaged);
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}
