//! Models that are large because of their vocabulary.

use std::fs::{self, File};

use serde_json::{Value, json};

use super::Broken;

/// `model` with an embedding of this many rows, which are a hole at the end of the file.
pub fn with_vocabulary(model: &str, rows: usize) -> Broken {
    let copy = Broken::copy_of(model).edit_json("config.json", |config| config["vocab_size"] = json!(rows));
    let path = copy.file("model.safetensors");
    let bytes = fs::read(&path).expect("the file can be read");
    let end = 8 + u64::from_le_bytes(*bytes.first_chunk().expect("the file has a header")) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..end]).expect("the header is JSON");
    let (mut tensors, mut data, mut hole) = (serde_json::Map::new(), Vec::new(), None);
    for (name, mut tensor) in header {
        let offset = |index: usize| tensor["data_offsets"][index].as_u64().map(|offset| end + offset as usize);
        let Some((start, stop)) = offset(0).zip(offset(1)) else { continue };
        if name.ends_with("embed_tokens.weight") {
            hole = Some((name, tensor));
            continue;
        }
        tensor["data_offsets"] = json!([data.len(), data.len() + stop - start]);
        data.extend_from_slice(&bytes[start..stop]);
        tensors.insert(name, tensor);
    }
    let (name, mut embedding) = hole.expect("the model has an embedding");
    let width = embedding["shape"][1].as_u64().expect("it is a matrix") as usize;
    (embedding["dtype"], embedding["shape"]) = (json!("F32"), json!([rows, width]));
    embedding["data_offsets"] = json!([data.len(), data.len() + rows * width * 4]);
    tensors.insert(name, embedding);
    let header = Value::Object(tensors).to_string();
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    fs::write(&path, &start).expect("the file can be written");
    let file = File::options().write(true).open(&path).expect("the file can be opened");
    file.set_len((start.len() + rows * width * 4) as u64).expect("a hole takes no room");
    copy
}
