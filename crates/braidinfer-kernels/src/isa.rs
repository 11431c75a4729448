//! Selecting the instruction set, once per process.

use std::env::VarError;
use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::simd::Scalar;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx2, Avx2Vnni, Avx512, Avx512Bf16};
#[cfg(target_arch = "aarch64")]
use crate::simd::{Neon, NeonDotprod, NeonI8mm};

/// The environment variable that forces an instruction set.
pub const ISA_VARIABLE: &str = "BRAIDINFER_ISA";

/// An instruction set that this processor has. All give bitwise equal results, except at [`crate::NumericLevel::Bf16`],
/// where AVX-512 BF16 takes denormals as zeros, and AMX adds products in another order.
#[derive(Debug, Clone, Copy)]
pub struct Isa(pub(crate) Level);

#[derive(Debug, Clone, Copy)]
pub(crate) enum Level {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx2Vnni(Avx2Vnni),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    #[cfg(target_arch = "aarch64")]
    NeonDotprod(NeonDotprod),
    #[cfg(target_arch = "aarch64")]
    NeonI8mm(NeonI8mm),
}

/// Why an instruction set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IsaError {
    asked: String,
    available: String,
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asked, available } = self;
        write!(f, "{ISA_VARIABLE}: expected one of {available} on this processor, found `{asked}`")
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// The reference implementation of every kernel, in plain Rust.
    pub const SCALAR: Self = Self(Level::Scalar(Scalar));

    /// Every instruction set of this processor, fastest first.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx512 = Avx512Bf16::detect();
            levels.extend(avx512.and_then(Avx512Bf16::with_tiles).map(Level::Avx512Bf16));
            levels.extend(avx512.map(Level::Avx512Bf16));
            levels.extend(Avx512::detect().map(Level::Avx512));
            levels.extend(Avx2Vnni::detect().map(Level::Avx2Vnni));
            levels.extend(Avx2::detect().map(Level::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        {
            levels.extend(NeonI8mm::detect().map(Level::NeonI8mm));
            levels.extend(NeonDotprod::detect().map(Level::NeonDotprod));
            levels.extend(Neon::detect().map(Level::Neon));
        }
        levels.push(Level::Scalar(Scalar));
        levels.into_iter().map(Self).collect()
    }

    /// Whether a matrix unit multiplies tiles of rows. Sums at [`crate::NumericLevel::Bf16`] then have an order of their own:
    /// for every 32 columns, products of even columns are added in order, and so are those of odd ones, each with one
    /// rounding; then the two sums to each other, and the result to the sum so far.
    pub fn has_tile_unit(self) -> bool {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(simd) => simd.has_tiles(),
            _ => false,
        }
    }

    /// The fastest one, or the one that `BRAIDINFER_ISA` names. Detected once per process.
    pub fn detect() -> Result<Self, IsaError> {
        static FOUND: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        FOUND
            .get_or_init(|| match std::env::var(ISA_VARIABLE) {
                Ok(name) => name.parse(),
                Err(VarError::NotPresent) => Ok(Self::available()[0]),
                Err(VarError::NotUnicode(name)) => name.to_string_lossy().parse(),
            })
            .clone()
    }

    /// `scalar`; on x86 `avx2`, `avx2+vnni`, `avx512`, `avx512+bf16` or `avx512+amx`, which has bf16 as well; on ARM `neon`,
    /// `neon+dotprod` or `neon+i8mm`, which has the dot products as well.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2Vnni(_) => "avx2+vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(simd) if simd.has_tiles() => "avx512+amx",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16(_) => "avx512+bf16",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
            #[cfg(target_arch = "aarch64")]
            Level::NeonDotprod(_) => "neon+dotprod",
            #[cfg(target_arch = "aarch64")]
            Level::NeonI8mm(_) => "neon+i8mm",
        }
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    /// Parses a [name](Isa::name), if this processor has the instruction set.
    fn from_str(name: &str) -> Result<Self, IsaError> {
        let available = Self::available();
        let found = available.iter().find(|isa| isa.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<&str> = available.iter().map(|isa| isa.name()).collect();
            IsaError { asked: name.to_owned(), available: names.join(", ") }
        })
    }
}

/// Defines a public function that dispatches to a generic one, compiled for the instruction set that it is given, or for the
/// one that this one extends by products of bytes or of bf16.
///
/// `pub fn name(args) -> result = path;` where `path` is `fn(simd: impl Simd, args) -> result` with
/// `#[inline(always)]`.
macro_rules! dispatched {
    ($($function:tt)*) => { $crate::isa::dispatched_to! { avx2 avx512 neon neon $($function)* } };
}
pub(crate) use dispatched;

/// [`dispatched`] for functions that multiply bytes: compiled for every instruction set, which takes longer.
macro_rules! dispatched_products {
    ($($function:tt)*) => { $crate::isa::dispatched_to! { avx2_vnni avx512 neon_dotprod neon_i8mm $($function)* } };
}
pub(crate) use dispatched_products;

/// [`dispatched`] for functions that multiply bf16, and may multiply bytes.
macro_rules! dispatched_bf16 {
    ($($function:tt)*) => { $crate::isa::dispatched_to! { avx2_vnni avx512_bf16 neon_dotprod neon_i8mm $($function)* } };
}
pub(crate) use dispatched_bf16;

/// [`dispatched`], and which functions run on processors that have AVX-VNNI, AVX-512 BF16, NEON's dot products, and I8MM.
macro_rules! dispatched_to {
    (
        $vnni:ident $bf16:ident $dotprod:ident $i8mm:ident
        $(#[$attribute:meta])* $visibility:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $result:ty)? = $generic:path;
    ) => {
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
        #[allow(unsafe_code, reason = "the home of `unsafe`: calls of functions compiled for more features")]
        $visibility fn $name(isa: $crate::isa::Isa, $($arg: $type),*) $(-> $result)? {
            use $crate::isa::Level;
            #[cfg(target_arch = "x86_64")]
            $crate::isa::compiled_for! {
                avx512_bf16: Avx512Bf16 = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c",
                ($($arg: $type),*) $(-> $result)? = $generic
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::compiled_for! {
                avx512: Avx512 = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c",
                ($($arg: $type),*) $(-> $result)? = $generic
            }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::compiled_for! { avx2_vnni: Avx2Vnni = "avx2,fma,f16c,avxvnni", ($($arg: $type),*) $(-> $result)? = $generic }
            #[cfg(target_arch = "x86_64")]
            $crate::isa::compiled_for! { avx2: Avx2 = "avx2,fma,f16c", ($($arg: $type),*) $(-> $result)? = $generic }
            #[cfg(target_arch = "aarch64")]
            $crate::isa::compiled_for! { neon_i8mm: NeonI8mm = "neon,dotprod,i8mm", ($($arg: $type),*) $(-> $result)? = $generic }
            #[cfg(target_arch = "aarch64")]
            $crate::isa::compiled_for! { neon_dotprod: NeonDotprod = "neon,dotprod", ($($arg: $type),*) $(-> $result)? = $generic }
            #[cfg(target_arch = "aarch64")]
            $crate::isa::compiled_for! { neon: Neon = "neon", ($($arg: $type),*) $(-> $result)? = $generic }
            match isa.0 {
                Level::Scalar(simd) => $generic(simd, $($arg),*),
                // SAFETY: the value proves that the processor has the features that the function is compiled for.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2(simd) => unsafe { avx2(simd, $($arg),*) },
                // SAFETY: as above, also of the instruction set that this one extends.
                #[cfg(target_arch = "x86_64")]
                Level::Avx2Vnni(simd) => unsafe { $vnni(simd.into(), $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512(simd) => unsafe { avx512(simd, $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                Level::Avx512Bf16(simd) => unsafe { $bf16(simd.into(), $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::Neon(simd) => unsafe { neon(simd, $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::NeonDotprod(simd) => unsafe { $dotprod(simd.into(), $($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "aarch64")]
                Level::NeonI8mm(simd) => unsafe { $i8mm(simd.into(), $($arg),*) },
            }
        }
    };
}
pub(crate) use dispatched_to;

/// Defines a function that calls a generic one with an instruction set, and is compiled for its features.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! compiled_for {
    ($name:ident: $simd:ident = $features:literal, ($($arg:ident: $type:ty),*) $(-> $result:ty)? = $generic:path) => {
        #[target_feature(enable = $features)]
        #[allow(clippy::too_many_arguments, reason = "kernels take their operands one by one")]
        #[allow(dead_code, reason = "one that multiplies neither bytes nor bf16 runs as compiled for fewer features")]
        fn $name(simd: $crate::simd::$simd, $($arg: $type),*) $(-> $result)? {
            $generic(simd, $($arg),*)
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use compiled_for;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse::<Isa>().unwrap().name(), isa.name());
        }
        let error = "avx3".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("found `avx3`") && error.contains("scalar"), "{error}");
    }

    /// An emulated processor must be taken for what it is, or its instructions would not be tested.
    #[test]
    fn the_expected_instruction_sets_are_found() {
        if let Ok(expected) = std::env::var("BRAIDINFER_EXPECTED_ISAS") {
            let names: Vec<&str> = Isa::available().iter().map(|isa| isa.name()).collect();
            assert_eq!(names.join(", "), expected);
        }
    }
}
