//! The figures of both, and their table.

use crate::output;

/// Figures of both, round by round, in the order in which they were first measured.
pub(super) struct Figures {
    columns: [String; 2],
    rows: Vec<(String, [Vec<f64>; 2])>,
}

impl Figures {
    pub(super) fn new(columns: [String; 2]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub(super) fn add(&mut self, column: usize, what: impl Into<String>, figure: f64) {
        let what = what.into();
        eprintln!("{}, {what} = {}", self.columns[column], number(figure));
        let index = self.rows.iter().position(|(name, _)| *name == what).unwrap_or_else(|| {
            self.rows.push((what, Default::default()));
            self.rows.len() - 1
        });
        self.rows[index].1[column].push(figure);
    }

    /// The middle figures, and the middle ratio of figures from the same round.
    pub(super) fn table(&self) -> String {
        let [ours, theirs] = &self.columns;
        let mut lines =
            vec![vec!["FIGURE".to_owned(), ours.to_uppercase(), theirs.to_uppercase(), "RATIO".into()]];
        for (what, [ours, theirs]) in &self.rows {
            let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
            let ratio = median(ratios.collect()).map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}"));
            let middle = |figures: &[f64]| median(figures.to_vec()).map_or_else(|| "-".into(), number);
            lines.push(vec![what.clone(), middle(ours), middle(theirs), ratio]);
        }
        output::aligned(lines)
    }
}

fn number(figure: f64) -> String {
    match figure {
        large if large >= 100.0 => format!("{large:.0}"),
        middling if middling >= 10.0 => format!("{middling:.1}"),
        small => format!("{small:.2}"),
    }
}

fn median(mut figures: Vec<f64>) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_of_figures_from_one_round() {
        let mut figures = Figures::new(["lichen".into(), "etcd 3.5.16".into()]);
        for (ours, theirs) in [(2000.0, 1000.0), (100.0, 10.0), (900.0, 300.0)] {
            figures.add(0, "puts", ours);
            figures.add(1, "puts", theirs);
        }
        figures.add(0, "alone", 1.234);
        assert_eq!(
            figures.table().lines().map(str::trim_end).collect::<Vec<_>>(),
            [
                "FIGURE   LICHEN   ETCD 3.5.16   RATIO",
                "puts     900      300           3.00",
                "alone    1.23     -             -",
            ]
        );
    }
}
