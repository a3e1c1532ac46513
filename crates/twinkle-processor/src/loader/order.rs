//! In which order rows are taken: permutations as `NumPy` makes them, so that Python can say the same order.

/// The Mersenne Twister (Matsumoto and Nishimura, 1998), seeded as `numpy.random.RandomState(seed)`.
struct Twister {
    state: Vec<u32>,
    position: usize,
}

const SIZE: usize = 624;
const MIDDLE: usize = 397;

impl Twister {
    fn new(seed: u32) -> Self {
        let mut state = Vec::with_capacity(SIZE);
        let mut word = seed;
        for number in 0..SIZE as u32 {
            state.push(word);
            word = 1_812_433_253_u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(number + 1);
        }
        Self { state, position: SIZE }
    }

    fn word(&mut self, place: usize) -> u32 {
        self.state.get(place % SIZE).copied().unwrap_or_default()
    }

    fn twist(&mut self) {
        for place in 0..SIZE {
            let joined = (self.word(place) & 0x8000_0000) | (self.word(place + 1) & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            let word = self.word(place + MIDDLE) ^ (joined >> 1) ^ odd;
            if let Some(old) = self.state.get_mut(place) {
                *old = word;
            }
        }
        self.position = 0;
    }

    fn next(&mut self) -> u32 {
        if self.position >= SIZE {
            self.twist();
        }
        let mut word = self.word(self.position);
        self.position += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number from 0 to `most`, both included.
    fn up_to(&mut self, most: u32) -> u32 {
        let mask = u32::MAX.checked_shr(most.leading_zeros()).unwrap_or(0);
        loop {
            let number = self.next() & mask;
            if number <= most {
                return number;
            }
        }
    }
}

/// The numbers below `count` in the order of `numpy.random.RandomState(seed).permutation(count)`.
pub(super) fn permutation(seed: u32, count: usize) -> Vec<usize> {
    let mut twister = Twister::new(seed);
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        let other = twister.up_to(u32::try_from(last).unwrap_or(u32::MAX)) as usize;
        order.swap(last, other);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with NumPy 2: `np.random.RandomState(seed).permutation(count).tolist()`.
    #[test]
    fn orders_are_numpys() {
        assert_eq!(permutation(42, 10), [8, 1, 5, 0, 7, 2, 9, 4, 3, 6]);
        assert_eq!(permutation(7, 5), [0, 3, 2, 1, 4]);
        assert_eq!(permutation(42, 1), [0]);
        assert_eq!(permutation(42, 0), [0; 0]);
        let long = permutation(1, 2_000);
        assert_eq!(long[..5], [674, 1699, 1282, 1315, 1210]);
    }
}
