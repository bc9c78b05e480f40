//! Vector code by auto-vectorisation: loops compiled for several instruction sets.

/// Defines a function compiled for AVX-512, AVX2 and the baseline, chosen at run time.
///
/// ```
/// dualspeed_core::multiversion! {
///     fn add(a: &mut [f32], b: &[f32]) {
///         for (a, b) in a.iter_mut().zip(b) {
///             *a += b;
///         }
///     }
/// }
/// let mut a = [1.0, 2.0];
/// add(&mut a, &[3.0, 4.0]);
/// assert_eq!(a, [4.0, 6.0]);
/// ```
#[macro_export]
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn generic($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    generic($($arg),*)
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    generic($($arg),*)
                }
                if ::std::arch::is_x86_feature_detected!("avx512f")
                    && ::std::arch::is_x86_feature_detected!("avx512vl")
                    && ::std::arch::is_x86_feature_detected!("avx512dq")
                    && ::std::arch::is_x86_feature_detected!("avx512bw")
                {
                    // SAFETY: the features were detected just above.
                    return unsafe { avx512($($arg),*) };
                }
                if ::std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the feature was detected just above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            generic($($arg),*)
        }
    };
}
