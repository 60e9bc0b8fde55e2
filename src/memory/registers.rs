//! Clearing vector registers: the last rows that a kernel worked on stay in them until somebody needs them.
#![expect(unsafe_code, reason = "instructions that set registers to zero")]

/// Sets this thread's vector registers to zero: those that calls need not preserve, which is all of them but the lower
/// halves of v8 to v15 on AArch64. A few dozen instructions.
#[inline(never)]
pub fn clear() {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx512bw") {
        // SAFETY: the processor has the instructions, and all that they write is named.
        unsafe { clear_avx512() };
    } else if std::arch::is_x86_feature_detected!("avx") {
        // SAFETY: as above.
        unsafe {
            std::arch::asm!("vzeroall",
                out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
                out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
                out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
                out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
                options(nomem, nostack, preserves_flags));
        }
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: every processor of this kind has the instructions, and all that they write is named.
    unsafe {
        std::arch::asm!(
            "movi v0.2d, #0",
            "movi v1.2d, #0",
            "movi v2.2d, #0",
            "movi v3.2d, #0",
            "movi v4.2d, #0",
            "movi v5.2d, #0",
            "movi v6.2d, #0",
            "movi v7.2d, #0",
            "mov v8.d[1], xzr",
            "mov v9.d[1], xzr",
            "mov v10.d[1], xzr",
            "mov v11.d[1], xzr",
            "mov v12.d[1], xzr",
            "mov v13.d[1], xzr",
            "mov v14.d[1], xzr",
            "mov v15.d[1], xzr",
            "movi v16.2d, #0",
            "movi v17.2d, #0",
            "movi v18.2d, #0",
            "movi v19.2d, #0",
            "movi v20.2d, #0",
            "movi v21.2d, #0",
            "movi v22.2d, #0",
            "movi v23.2d, #0",
            "movi v24.2d, #0",
            "movi v25.2d, #0",
            "movi v26.2d, #0",
            "movi v27.2d, #0",
            "movi v28.2d, #0",
            "movi v29.2d, #0",
            "movi v30.2d, #0",
            "movi v31.2d, #0",
            // what a C function may overwrite, which is what is overwritten here
            clobber_abi("C"),
            options(nomem, nostack, preserves_flags)
        );
    }
}

/// With AVX-512: 32 registers of 64 bytes, and eight masks.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[cfg(target_arch = "x86_64")]
unsafe fn clear_avx512() {
    // SAFETY: the caller's promise; all that is written is named.
    unsafe {
        std::arch::asm!("vzeroall",
            "vpxord zmm16, zmm16, zmm16", "vpxord zmm17, zmm17, zmm17", "vpxord zmm18, zmm18, zmm18",
            "vpxord zmm19, zmm19, zmm19", "vpxord zmm20, zmm20, zmm20", "vpxord zmm21, zmm21, zmm21",
            "vpxord zmm22, zmm22, zmm22", "vpxord zmm23, zmm23, zmm23", "vpxord zmm24, zmm24, zmm24",
            "vpxord zmm25, zmm25, zmm25", "vpxord zmm26, zmm26, zmm26", "vpxord zmm27, zmm27, zmm27",
            "vpxord zmm28, zmm28, zmm28", "vpxord zmm29, zmm29, zmm29", "vpxord zmm30, zmm30, zmm30",
            "vpxord zmm31, zmm31, zmm31",
            "kxorq k0, k0, k0", "kxorq k1, k1, k1", "kxorq k2, k2, k2", "kxorq k3, k3, k3",
            "kxorq k4, k4, k4", "kxorq k5, k5, k5", "kxorq k6, k6, k6", "kxorq k7, k7, k7",
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            out("xmm4") _, out("xmm5") _, out("xmm6") _, out("xmm7") _,
            out("xmm8") _, out("xmm9") _, out("xmm10") _, out("xmm11") _,
            out("xmm12") _, out("xmm13") _, out("xmm14") _, out("xmm15") _,
            out("xmm16") _, out("xmm17") _, out("xmm18") _, out("xmm19") _,
            out("xmm20") _, out("xmm21") _, out("xmm22") _, out("xmm23") _,
            out("xmm24") _, out("xmm25") _, out("xmm26") _, out("xmm27") _,
            out("xmm28") _, out("xmm29") _, out("xmm30") _, out("xmm31") _,
            out("k0") _, out("k1") _, out("k2") _, out("k3") _,
            out("k4") _, out("k5") _, out("k6") _, out("k7") _,
            options(nomem, nostack, preserves_flags));
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
pub(crate) mod tests {
    use std::arch::asm;

    /// What is in ymm3 and, with AVX-512, in zmm29, after they were set and `act` was called.
    pub(crate) fn registers_after(act: extern "C" fn()) -> Option<([u64; 4], [u64; 8])> {
        if !std::arch::is_x86_feature_detected!("avx512bw") {
            return None;
        }
        let (marks, mut low, mut high) = ([0x5ec2_e75e_u64; 8], [0_u64; 4], [0_u64; 8]);
        // SAFETY: the processor has the instructions; the memory is as long as the registers; the call overwrites what C
        // functions may, and the stack is aligned for it.
        unsafe {
            asm!("push rbp", "mov rbp, rsp", "and rsp, -64",
                "vmovdqu ymm3, [r12]", "vmovdqu64 zmm29, [r12]",
                "call {act}",
                "vmovdqu [r13], ymm3", "vmovdqu64 [r14], zmm29",
                "mov rsp, rbp", "pop rbp",
                act = in(reg) act,
                in("r12") marks.as_ptr(), in("r13") low.as_mut_ptr(), in("r14") high.as_mut_ptr(),
                clobber_abi("C"));
        }
        Some((low, high))
    }

    extern "C" fn nothing() {}

    extern "C" fn clear() {
        super::clear();
    }

    #[test]
    fn what_was_in_the_registers_is_gone() {
        let Some((low, high)) = registers_after(nothing) else { return };
        assert_eq!((low, high), ([0x5ec2_e75e; 4], [0x5ec2_e75e; 8]), "the marks must be seen");
        assert_eq!(registers_after(clear), Some(([0; 4], [0; 8])));
    }
}
