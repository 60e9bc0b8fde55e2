//! Products on a CUDA device against those of cuBLASLt, which shares no code with ours. On machines without a device, or
//! without that library, nothing is compared; `tools/gpu_check` counts it.

use amnesic::testing::device;

use crate::alone;

#[test]
fn products_are_those_of_cublaslt() {
    let _alone = alone();
    if device::count() == 0 {
        return eprintln!("skipped: no CUDA device");
    }
    let tokens = [1, 7, 8, 9, 16, 17, 33, 64, 65, 128, 129, 511];
    for shape in [(4096, 4096), (14336, 4096), (4096, 14336), (1024, 2048), (128256, 64)] {
        let folder = tempfile::tempdir().unwrap();
        let Some(differences) = device::library_differences(0, shape, &tokens, folder.path()).unwrap() else {
            return eprintln!("skipped: cuBLASLt is not installed");
        };
        for (tokens, difference) in tokens.iter().zip(differences) {
            // the same numbers added up in another order, some of them cut off at 24 bits
            assert!(difference < 1e-3, "{shape:?}, {tokens} tokens: {difference}");
        }
        println!("{shape:?}: compared at {} counts of tokens", tokens.len());
    }
}
