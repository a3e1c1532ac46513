//! Sums to be found, and what an answer to one is worth.

use twinkle_client::ChatMessage;

/// One sum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sum {
    first: u64,
    second: u64,
}

impl Sum {
    /// What is asked, after two sums that show how to answer.
    pub(crate) fn conversation(&self) -> Vec<ChatMessage> {
        let shown = [Self { first: 2, second: 3 }, Self { first: 6, second: 1 }];
        let answered = |sum: Self| {
            [ChatMessage::user(sum.question()), ChatMessage::assistant((sum.first + sum.second).to_string())]
        };
        shown.into_iter().flat_map(answered).chain([ChatMessage::user(self.question())]).collect()
    }

    fn question(&self) -> String {
        format!("What is {} + {}? Answer with the number alone.", self.first, self.second)
    }

    /// Whether the first number in an answer is the sum.
    pub(crate) fn is_right(&self, answer: &str) -> bool {
        let digits: String =
            answer.chars().skip_while(|letter| !letter.is_ascii_digit()).take_while(char::is_ascii_digit).collect();
        digits.parse() == Ok(self.first + self.second)
    }

    /// 1 for the right number, and up to 0.2 for saying little else than a number.
    pub(crate) fn reward(&self, answer: &str) -> f64 {
        let letters = answer.trim().chars().count().max(1) as f64;
        let digits = answer.chars().filter(char::is_ascii_digit).count() as f64;
        f64::from(u8::from(self.is_right(answer))) + 0.2 * digits / letters
    }
}

/// An endless row of sums; the same seed gives the same row.
pub(crate) struct Sums {
    state: u64,
    largest: u64,
}

impl Sums {
    pub(crate) const fn new(seed: u64, largest: u64) -> Self {
        Self { state: seed, largest }
    }

    /// The next sums.
    pub(crate) fn draw(&mut self, count: usize) -> Vec<Sum> {
        (0..count).map(|_| Sum { first: self.number(), second: self.number() }).collect()
    }

    /// `SplitMix64` (Steele et al. 2014).
    fn number(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % (self.largest + 1)
    }
}
