//! AMX: tiles of up to 16 rows of 64 bytes, multiplied by instructions that are not stable as intrinsics, so in assembly.
//!
//! Tile registers and their configuration outlive a block of assembly. That is sound because nothing else touches them:
//! the compiler uses tiles only in functions compiled for AMX, of which there are none, the operating system keeps them
//! for each thread, and [`Configured`] cannot leave its thread.

#![allow(unsafe_code, reason = "the home of `unsafe`: matrix instructions")]

use std::arch::asm;
use std::arch::x86_64::{_mm512_loadu_si512, _mm512_set1_epi8, _mm512_storeu_si512, _mm512_sub_epi8};
use std::marker::PhantomData;

use super::LANES;
use super::tile_unit::{
    BfloatBlock, BfloatRows, BfloatTiles, BlockCodes, ByteRows, ByteTiles, ROWS, TileDots, TileUnit,
};

/// Proof that the processor has AMX-INT8, AMX-BF16 and AVX-512BW, and that the operating system lets this process use
/// tiles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amx(());

impl Amx {
    pub(crate) fn detect() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512bw") && has_tiles() && may_use_tiles();
        found.then_some(Self(()))
    }
}

/// Whether the processor has AMX-TILE, AMX-INT8 and AMX-BF16, and the operating system keeps tiles when it switches
/// threads. (The feature names are not stable in `is_x86_feature_detected`.)
fn has_tiles() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    // Leaf 7, EDX: bits 22, 24 and 25 are AMX-BF16, AMX-TILE and AMX-INT8. Leaf 1, ECX: bit 27 is OSXSAVE.
    const AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & AMX != AMX || __cpuid(1).ecx & 1 << 27 == 0 {
        return false;
    }
    let (low, _high): (u32, u32);
    // SAFETY: OSXSAVE says that the instruction exists; register 0 always does.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") _high, options(nomem, nostack)) };
    // Bits 17 and 18: the configuration and the data of tiles.
    low >> 17 & 3 == 3
}

/// Asks Linux for the right to use tile data, which holds for all threads of the process.
#[cfg(target_os = "linux")]
fn may_use_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call has no pointers; kernels that do not know it return an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Not tried on other systems.
#[cfg(not(target_os = "linux"))]
fn may_use_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const _: () = assert!(size_of::<Configuration>() == 64);

impl Configuration {
    /// Tiles 0 to 3 are sums, 4 and 5 activations of `x_bytes` bytes a row, 6 and 7 weights in `vectors` vectors.
    const fn new(x_bytes: u16, vectors: u8) -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut tile = 0;
        while tile < 8 {
            (row_bytes[tile], rows[tile]) = match tile {
                0..4 => (64, ROWS as u8),
                4..6 => (x_bytes, ROWS as u8),
                _ => (64, vectors),
            };
            tile += 1;
        }
        Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
    }
}

static SIXTEEN_BYTES: Configuration = Configuration::new(16, 4);
static THIRTY_TWO_BYTES: Configuration = Configuration::new(32, 8);
/// The largest tiles there are: 16 rows of 64 bytes.
static LARGEST: Configuration = Configuration::new(64, 16);

/// The tiles of this thread, configured; released when dropped, so that the operating system need not keep them.
pub(crate) struct Configured(PhantomData<*const ()>);

impl Configured {
    fn new(_: Amx, configuration: &'static Configuration) -> Self {
        // SAFETY: the processor has tiles, as the value proves, and the configuration is valid: palette 1, at most 16
        // rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) configuration, options(readonly, nostack, preserves_flags)) };
        Self(PhantomData)
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: the processor has tiles, or the value would not exist.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// Loads or stores a tile whose rows have 64 bytes, one after the other.
macro_rules! move_tile {
    ($instruction:literal, $pointer:expr) => {
        asm!($instruction, at = in(reg) $pointer, stride = in(reg) 64_usize, options(nostack, preserves_flags))
    };
}

impl TileUnit for Amx {
    const EXISTS: bool = true;
    type Bytes = Bytes;
    type Bfloats = Bfloats;

    #[inline(always)]
    fn bytes(self, columns: usize) -> Bytes {
        assert!(columns == 16 || columns == 32, "tiles for groups of {columns} bytes");
        let configuration = if columns == 16 { &SIXTEEN_BYTES } else { &THIRTY_TWO_BYTES };
        Bytes { columns, _configured: Configured::new(self, configuration) }
    }

    #[inline(always)]
    fn bfloats(self) -> Bfloats {
        Bfloats { _configured: Configured::new(self, &LARGEST) }
    }

    #[inline(always)]
    fn multiply_peak(self, bfloats: bool, rounds: usize) {
        let _configured = Configured::new(self, &LARGEST);
        let tile = [[1_u8; 64]; 16];
        // SAFETY: 16 rows of 64 bytes are read, which `tile` has.
        unsafe {
            asm!(
                "tileloadd tmm4, [{tile} + {stride}]",
                "tileloadd tmm5, [{tile} + {stride}]",
                "tileloadd tmm6, [{tile} + {stride}]",
                "tileloadd tmm7, [{tile} + {stride}]",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                tile = in(reg) &raw const tile,
                stride = in(reg) 64_usize,
                options(readonly, nostack, preserves_flags),
            );
            for _ in 0..rounds {
                if bfloats {
                    asm!(
                        "tdpbf16ps tmm0, tmm4, tmm6",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        "tdpbf16ps tmm2, tmm5, tmm6",
                        "tdpbf16ps tmm3, tmm5, tmm7",
                        options(nomem, nostack, preserves_flags),
                    );
                } else {
                    asm!(
                        "tdpbssd tmm0, tmm4, tmm6",
                        "tdpbssd tmm1, tmm4, tmm7",
                        "tdpbssd tmm2, tmm5, tmm6",
                        "tdpbssd tmm3, tmm5, tmm7",
                        options(nomem, nostack, preserves_flags),
                    );
                }
            }
        }
    }

    fn peak_operations(bfloats: bool) -> usize {
        2 * 16 * 16 * if bfloats { 32 } else { 64 }
    }

    #[inline(always)]
    fn subtract(self, codes: &[[u8; 64]], zero: u8, to: &mut [[u8; 64]]) {
        // SAFETY: the processor has the instructions.
        unsafe { subtract(codes, zero, to) };
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn subtract(codes: &[[u8; 64]], zero: u8, to: &mut [[u8; 64]]) {
    let zero = _mm512_set1_epi8(zero.cast_signed());
    for (codes, to) in codes.iter().zip(to) {
        // SAFETY: both arrays have the 64 bytes of the register, and no alignment is asked for.
        unsafe {
            _mm512_storeu_si512(
                to.as_mut_ptr().cast(),
                _mm512_sub_epi8(_mm512_loadu_si512(codes.as_ptr().cast()), zero),
            );
        }
    }
}

/// Tiles for groups of signed bytes.
pub(crate) struct Bytes {
    /// Bytes of a group.
    columns: usize,
    _configured: Configured,
}

impl ByteTiles for Bytes {
    #[inline(always)]
    fn dot<const P: usize>(&self, group: usize, x: &ByteRows, codes: [&BlockCodes; P], dots: &mut [TileDots; P]) {
        assert!(P == 1 || P == 2, "{P} panels");
        let first = self.columns / 4 * group;
        assert!(first + self.columns / 4 <= 8, "group {group} of {} columns in a block", self.columns);
        let x = &raw const x[0][first];
        let codes = [&raw const codes[0][first], &raw const codes[P - 1][first]];
        // SAFETY: activations are read in 16 rows of `columns` bytes, 32 bytes apart; weights in `columns / 4` vectors of
        // 64; and sums are written in 16 rows of 64 bytes, a `TileDots` for each panel. All lie within the references.
        unsafe {
            asm!(
                "tileloadd tmm4, [{x} + {stride}]",
                x = in(reg) x,
                stride = in(reg) size_of::<[u32; 8]>(),
                options(nostack, preserves_flags),
            );
            move_tile!("tileloadd tmm6, [{at} + {stride}]", codes[0]);
            asm!("tilezero tmm0", "tdpbssd tmm0, tmm4, tmm6", options(nomem, nostack, preserves_flags));
            if P == 2 {
                move_tile!("tileloadd tmm7, [{at} + {stride}]", codes[1]);
                asm!("tilezero tmm1", "tdpbssd tmm1, tmm4, tmm7", options(nomem, nostack, preserves_flags));
            }
            move_tile!("tilestored [{at} + {stride}], tmm0", &raw mut dots[0]);
            if P == 2 {
                move_tile!("tilestored [{at} + {stride}], tmm1", &raw mut dots[P - 1]);
            }
        }
    }
}

/// Tiles for bf16. Tiles 0 and 1 keep the sums between calls.
pub(crate) struct Bfloats {
    _configured: Configured,
}

impl BfloatTiles for Bfloats {
    #[inline(always)]
    fn begin<const P: usize>(&self, sums: [&[[f32; LANES]; ROWS]; P]) {
        assert!(P == 1 || P == 2, "{P} panels");
        // SAFETY: 16 rows of 64 bytes are read for each panel, which is what `sums` has.
        unsafe {
            move_tile!("tileloadd tmm0, [{at} + {stride}]", sums[0].as_ptr());
            move_tile!("tileloadd tmm1, [{at} + {stride}]", sums[P - 1].as_ptr());
        }
    }

    #[inline(always)]
    fn add<const P: usize>(&self, x: &BfloatRows, weights: [&BfloatBlock; P]) {
        assert!(P == 1 || P == 2, "{P} panels");
        // SAFETY: 16 rows of 64 bytes of activations and of each panel are read, which is what the references have.
        unsafe {
            move_tile!("tileloadd tmm4, [{at} + {stride}]", x.as_ptr());
            move_tile!("tileloadd tmm6, [{at} + {stride}]", weights[0].as_ptr());
            asm!("tdpbf16ps tmm0, tmm4, tmm6", options(nomem, nostack, preserves_flags));
            if P == 2 {
                move_tile!("tileloadd tmm7, [{at} + {stride}]", weights[P - 1].as_ptr());
                asm!("tdpbf16ps tmm1, tmm4, tmm7", options(nomem, nostack, preserves_flags));
            }
        }
    }

    #[inline(always)]
    fn end<const P: usize>(&self, sums: [&mut [[f32; LANES]; ROWS]; P]) {
        assert!(P == 1 || P == 2, "{P} panels");
        // SAFETY: 16 rows of 64 bytes are written for each panel, which is what `sums` has.
        unsafe {
            move_tile!("tilestored [{at} + {stride}], tmm0", sums[0].as_mut_ptr());
            if P == 2 {
                move_tile!("tilestored [{at} + {stride}], tmm1", sums[P - 1].as_mut_ptr());
            }
        }
    }
}
