//! ggml's numbers for tensor types (`enum ggml_type` in `ggml.h`).

use crate::Dtype;
use crate::format::checkpoint::UnsupportedType;

/// Supported types, with ggml's number.
const SUPPORTED: [(u32, Dtype); 26] = [
    (0, Dtype::F32),
    (1, Dtype::F16),
    (2, Dtype::Q4_0),
    (3, Dtype::Q4_1),
    (6, Dtype::Q5_0),
    (7, Dtype::Q5_1),
    (8, Dtype::Q8_0),
    (10, Dtype::Q2K),
    (11, Dtype::Q3K),
    (12, Dtype::Q4K),
    (13, Dtype::Q5K),
    (14, Dtype::Q6K),
    (16, Dtype::Iq2Xxs),
    (17, Dtype::Iq2Xs),
    (18, Dtype::Iq3Xxs),
    (19, Dtype::Iq1S),
    (20, Dtype::Iq4Nl),
    (21, Dtype::Iq3S),
    (22, Dtype::Iq2S),
    (23, Dtype::Iq4Xs),
    (29, Dtype::Iq1M),
    (30, Dtype::BF16),
    (34, Dtype::Tq1_0),
    (35, Dtype::Tq2_0),
    (39, Dtype::Mxfp4),
    (40, Dtype::Nvfp4),
];

const SUPPORTED_NAMES: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, \
     IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4 or NVFP4";

/// Names of unsupported types, for messages.
const UNSUPPORTED: [(u32, &str); 11] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (41, "Q1_0"),
];

/// The type with number `id`.
pub(super) fn dtype(id: u32) -> Result<Dtype, UnsupportedType> {
    if let Some((_, dtype)) = SUPPORTED.iter().find(|(number, _)| *number == id) {
        return Ok(*dtype);
    }
    let name = UNSUPPORTED.iter().find(|(number, _)| *number == id);
    let name = name.map_or_else(|| format!("type number {id}"), |(_, name)| (*name).to_owned());
    Err(UnsupportedType { name, supported: SUPPORTED_NAMES })
}

/// ggml's number for `dtype`.
pub(super) fn id(dtype: Dtype) -> u32 {
    SUPPORTED.iter().find(|(_, supported)| *supported == dtype).map_or(0, |(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_correspond() {
        for (number, supported) in SUPPORTED {
            assert_eq!((dtype(number), id(supported)), (Ok(supported), number));
        }
        let name = |number| dtype(number).map_err(|unsupported| unsupported.name);
        assert_eq!(name(15), Err("Q8_K".into()));
        assert_eq!(name(4_000_000_000), Err("type number 4000000000".into()));
    }
}
