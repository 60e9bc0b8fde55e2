//! Which instruction set to use, decided once at run time.

use super::kernels::Kernels;

/// Whether AMX works here, tried out once: asking for it and the trial are the process's, not a session's.
///
/// Unit tests emulate its instructions where the processor has AVX-512 only, so that its kernels are always tested.
#[cfg(target_arch = "x86_64")]
fn has_amx() -> bool {
    use super::x86_64::amx;
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = amx::detect();
        #[cfg(all(test, target_os = "linux"))]
        if !found && amx::has_avx512() {
            super::x86_64::amx_emulated::install();
            return true;
        }
        found
    })
}

/// An instruction set that this machine has: holding the value proves it.
#[derive(Clone, Copy, Debug)]
pub struct Isa {
    /// Its name.
    pub name: &'static str,
    kernels: Kernels,
}

impl Isa {
    /// Those that multiply bf16 by bf16 in hardware round such products in their own way; all others give the same bits.
    pub fn arithmetic(&self) -> &'static str {
        match self.name {
            own @ ("amx" | "avx512bf16" | "neonbf16") => own,
            _ => "ieee754",
        }
    }

    /// Every instruction set that this machine has, best first. The last, `portable`, is always there.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use super::x86_64::{amx_tiles, avx2, avx512};
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            let sets = [
                ("amx", vnni && has_amx(), amx_tiles::KERNELS),
                ("avx512bf16", vnni && is_x86_feature_detected!("avx512bf16"), avx512::bf16::KERNELS),
                ("avx512vnni", vnni, avx512::vnni::KERNELS),
                ("avx512", avx512, avx512::plain::KERNELS),
                ("avxvnni", avx2 && is_x86_feature_detected!("avxvnni"), avx2::vnni::KERNELS),
                ("avx2", avx2, avx2::plain::KERNELS),
            ];
            all.extend(sets.into_iter().filter(|set| set.1).map(|(name, _, kernels)| Isa { name, kernels }));
        }
        #[cfg(target_arch = "aarch64")]
        {
            use super::aarch64::neon;
            use std::arch::is_aarch64_feature_detected as has;
            let (neon, dot) = (has!("neon"), has!("neon") && has!("dotprod"));
            let sets = [
                ("neonbf16", dot && has!("bf16"), neon::bf16::KERNELS),
                ("neondot", dot, neon::dot::KERNELS),
                ("neon", neon, neon::plain::KERNELS),
            ];
            all.extend(sets.into_iter().filter(|set| set.1).map(|(name, _, kernels)| Isa { name, kernels }));
        }
        all.push(Isa { name: "portable", kernels: super::generic::KERNELS });
        all
    }

    /// The best one.
    pub fn best() -> Isa {
        Self::available()[0]
    }

    /// The one called `name`, if this machine has it.
    pub fn named(name: &str) -> Option<Isa> {
        Self::available().into_iter().find(|isa| isa.name == name)
    }

    /// Whether products of bf16 round in the processor's own way: the others all give the same bits.
    #[cfg(test)]
    pub fn rounds_its_own_way(&self) -> bool {
        self.kernels.bf16_pairs.is_some()
    }

    /// Its kernels.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }
}
