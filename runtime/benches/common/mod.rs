//! What the benchmarks share.

use std::time::Duration;

use criterion::Criterion;

/// Short runs, since there are many; what the command line says goes before.
pub fn criterion(each: Duration) -> Criterion {
    Criterion::default()
        .without_plots()
        .sample_size(10)
        .nresamples(2000)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(each)
        .configure_from_args()
}

/// Random numbers between -1 and 1.
pub fn numbers() -> impl Iterator<Item = f32> {
    let mut random = 1u32;
    std::iter::repeat_with(move || {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (random >> 8) as f32 / 8_388_608.0 - 1.0
    })
}
