//! A low-rank adapter for the demo model, with random values.

use std::fs;
use std::path::Path;

use serde_json::{Map, json};

/// Sizes of the demo model.
const HIDDEN: usize = 192;
const INNER: usize = 512;
const RANK: usize = 4;

/// Writes a folder of peft whose adapter changes what the demo model says.
pub fn write(folder: &Path, seed: u64) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let settings = json!({"peft_type": "LORA", "r": RANK, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"]});
    fs::write(folder.join("adapter_config.json"), settings.to_string()).expect("settings can be written");
    let (mut header, mut data, mut state) = (Map::new(), Vec::new(), seed | 1);
    for layer in 0..4 {
        for (module, inputs) in [("self_attn.o_proj", HIDDEN), ("mlp.down_proj", INNER)] {
            for (matrix, shape) in [("A", [RANK, inputs]), ("B", [HIDDEN, RANK])] {
                let start = data.len();
                for _ in 0..shape[0] * shape[1] {
                    // Xorshift (Marsaglia 2003).
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    let value = (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5;
                    data.extend((value * 0.4).to_le_bytes());
                }
                let name = format!("base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight");
                header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
            }
        }
    }
    let header = json!(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    fs::write(folder.join("adapter_model.safetensors"), file).expect("weights can be written");
}
