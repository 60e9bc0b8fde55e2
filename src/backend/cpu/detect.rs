//! Which instruction set to use, decided once at run time.

use super::kernels::Kernels;

/// An instruction set that this machine has: holding the value proves it.
#[derive(Clone, Copy, Debug)]
pub struct Isa {
    /// Its name.
    pub name: &'static str,
    kernels: Kernels,
}

impl Isa {
    /// Every instruction set that this machine has, best first. The last, `portable`, is always there.
    pub fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            use super::x86_64::{avx2, avx512};
            let avx2 = is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c");
            if avx2 && is_x86_feature_detected!("avx512f") {
                all.push(Isa { name: "avx512", kernels: avx512::KERNELS });
            }
            if avx2 {
                all.push(Isa { name: "avx2", kernels: avx2::KERNELS });
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Isa { name: "neon", kernels: super::aarch64::neon::KERNELS });
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

    /// Its kernels.
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }
}
