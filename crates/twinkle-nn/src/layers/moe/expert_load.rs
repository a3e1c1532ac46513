//! How evenly the experts are used.

/// How many times each expert of each sparse layer was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    /// Per sparse layer, from the first: how many rows each expert was given, `[E]`.
    pub layers: Vec<Vec<u64>>,
}

impl ExpertLoad {
    /// Adds what other rows were given to.
    pub fn add(&mut self, other: &Self) {
        if self.layers.len() < other.layers.len() {
            self.layers.resize_with(other.layers.len(), Vec::new);
        }
        for (sum, counts) in self.layers.iter_mut().zip(&other.layers) {
            if sum.len() < counts.len() {
                sum.resize(counts.len(), 0);
            }
            for (sum, count) in sum.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }

    /// The load of the busiest expert above the mean, as a share of the mean and averaged over the layers: 0 is even,
    /// `E / k − 1` is as uneven as can be. The `MaxVio` of Wang et al. 2024; `None` without experts or rows.
    #[must_use]
    pub fn max_violation(&self) -> Option<f64> {
        let of_layer = |counts: &Vec<u64>| {
            let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
            let most = counts.iter().max().copied().unwrap_or(0) as f64;
            (mean > 0.0).then(|| most / mean - 1.0)
        };
        let violations: Vec<f64> = self.layers.iter().filter_map(of_layer).collect();
        if violations.is_empty() { None } else { Some(violations.iter().sum::<f64>() / violations.len() as f64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_use_has_no_violation_and_one_favourite_the_largest() {
        let even = ExpertLoad { layers: vec![vec![4, 4, 4, 4]] };
        assert_eq!(even.max_violation(), Some(0.0));
        let one = ExpertLoad { layers: vec![vec![16, 0, 0, 0], vec![0, 8, 8, 0]] };
        assert_eq!(one.max_violation(), Some(2.0));
        assert_eq!(ExpertLoad::default().max_violation(), None);
    }

    #[test]
    fn loads_add_up_layer_by_layer() {
        let mut load = ExpertLoad::default();
        load.add(&ExpertLoad { layers: vec![vec![1, 0], vec![0, 2]] });
        load.add(&ExpertLoad { layers: vec![vec![1, 3], vec![0, 1]] });
        assert_eq!(load.layers, [[2, 3], [0, 3]]);
    }
}
