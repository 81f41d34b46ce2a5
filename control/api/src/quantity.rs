//! Resource quantities: `500m`, `1.5Gi`, `1e3`.
//!
//! Invariant: a value is held exactly in billionths; what is finer is rounded up, as Kubernetes does. No floating point anywhere.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// The largest magnitude: 2^63 - 1 whole units.
const MAX: i128 = (i64::MAX as i128) * NANO;

/// How a quantity was written, which is how it is written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `500m`, `2k`.
    #[default]
    DecimalSi,
    /// `512Mi`.
    BinarySi,
    /// `1e3`.
    DecimalExponent,
}

/// An amount of something: CPU, bytes, pieces.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nano: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
pub struct QuantityError;

const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];
const BINARY: [(&str, u32); 6] = [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nano: 0, format: Format::DecimalSi };

    /// Whole pieces (CPUs, pods).
    pub fn from_units(units: i64) -> Self {
        Self { nano: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// Thousandths (milli-CPUs).
    pub fn from_milli(milli: i64) -> Self {
        Self { nano: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nano: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Whole units, rounded up.
    pub fn units(&self) -> i64 {
        clamp(div_up(self.nano, NANO))
    }

    /// Thousandths, rounded up.
    pub fn milli(&self) -> i64 {
        clamp(div_up(self.nano, NANO / 1000))
    }

    /// Whether it is zero.
    pub fn is_zero(&self) -> bool {
        self.nano == 0
    }

    /// Whether it is below zero.
    pub fn is_negative(&self) -> bool {
        self.nano < 0
    }

    /// Whether it is a whole number.
    pub fn is_whole(&self) -> bool {
        self.nano % NANO == 0
    }

    /// The sum, in the format of `self` (or of `other` if `self` is zero).
    pub fn plus(&self, other: &Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: (self.nano + other.nano).clamp(-MAX, MAX), format }
    }

    /// The difference, in the format of `self` (or of `other` if `self` is zero).
    pub fn minus(&self, other: &Self) -> Self {
        let format = if self.nano == 0 { other.format } else { self.format };
        Self { nano: (self.nano - other.nano).clamp(-MAX, MAX), format }
    }

    /// The canonical text of a quantity's text.
    pub fn canonical(text: &str) -> Result<String, QuantityError> {
        text.parse::<Self>().map(|quantity| quantity.to_string())
    }
}

fn clamp(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

/// Rounds away from zero.
fn div_up(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    quotient + rest.signum()
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nano == other.nano
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nano.cmp(&other.nano)
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let negative = text.starts_with('-');
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (format, power_of_two, power_of_ten) = suffix_scale(suffix)?;
        let nano = scaled(whole, fraction, power_of_two, power_of_ten).min(MAX);
        Ok(Self { nano: if negative { -nano } else { nano }, format })
    }
}

fn suffix_scale(suffix: &str) -> Result<(Format, u32, i32), QuantityError> {
    if let Some((_, power)) = DECIMAL.iter().find(|(known, _)| *known == suffix) {
        return Ok((Format::DecimalSi, 0, *power));
    }
    if let Some((_, power)) = BINARY.iter().find(|(known, _)| *known == suffix) {
        return Ok((Format::BinarySi, *power, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
    let exponent: i32 = exponent.parse().map_err(|_| QuantityError)?;
    Ok((Format::DecimalExponent, 0, exponent))
}

/// `whole.fraction * 2^power_of_two * 10^power_of_ten` in billionths, rounded up, saturating.
fn scaled(whole: &str, fraction: &str, power_of_two: u32, power_of_ten: i32) -> i128 {
    let digits: String = format!("{whole}{fraction}").trim_start_matches('0').chars().collect();
    // 10^28 nano units exceed the maximum, so that a longer number saturates wherever its point stands.
    let mut exponent =
        power_of_ten.saturating_add(9).saturating_sub(i32::try_from(fraction.len()).unwrap_or(i32::MAX));
    if digits.is_empty() {
        return 0;
    }
    let magnitude = i64::try_from(digits.len()).unwrap_or(i64::MAX) + i64::from(exponent);
    if magnitude > 29 {
        return MAX;
    }
    // Digits far behind the point only matter for rounding up.
    let kept = if power_of_two > 0 { 19 } else { 36 };
    let mut mantissa: i128 = 0;
    let mut sticky = false;
    for (index, digit) in digits.bytes().enumerate() {
        if index < kept {
            mantissa = mantissa * 10 + i128::from(digit - b'0');
        } else {
            sticky |= digit != b'0';
            exponent = exponent.saturating_add(1);
        }
    }
    mantissa <<= power_of_two.min(60);
    while exponent > 0 {
        mantissa = mantissa.saturating_mul(10).min(MAX + 1);
        exponent -= 1;
    }
    while exponent < 0 && mantissa > 0 {
        sticky |= mantissa % 10 != 0;
        mantissa /= 10;
        exponent += 1;
    }
    (mantissa + i128::from(sticky)).min(MAX)
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let binary =
            self.format == Format::BinarySi && self.nano % NANO == 0 && self.nano.abs() >= 1024 * NANO;
        if binary {
            let mut number = self.nano / NANO;
            let mut steps = 0;
            while number % 1024 == 0 && steps < BINARY.len() {
                number /= 1024;
                steps += 1;
            }
            let suffix = if steps == 0 { "" } else { BINARY[steps - 1].0 };
            return write!(f, "{number}{suffix}");
        }
        let mut number = self.nano;
        let mut steps = 0;
        if number == 0 {
            steps = 3;
        }
        while number != 0 && number % 1000 == 0 && steps < DECIMAL.len() - 1 {
            number /= 1000;
            steps += 1;
        }
        let (suffix, power) = DECIMAL[steps];
        match self.format {
            Format::DecimalExponent if power != 0 => write!(f, "{number}e{power}"),
            Format::DecimalExponent => write!(f, "{number}"),
            _ => write!(f, "{number}{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn canonical_texts() {
        let check = |text: &str, expect: &str| {
            assert_eq!(Quantity::canonical(text).as_deref(), Ok(expect), "{text}");
        };
        check("0", "0");
        check("1", "1");
        check("0.5", "500m");
        check("1.5", "1500m");
        check("1500m", "1500m");
        check("1000m", "1");
        check("1000", "1k");
        check("1.5Gi", "1536Mi");
        check("1024Ki", "1Mi");
        check("100Mi", "100Mi");
        check("512", "512");
        check("0.5Ki", "512");
        check("1e3", "1e3");
        check("1E3", "1e3");
        check("12e2", "1200");
        check("1E", "1E");
        check("-1", "-1");
        check("+1", "1");
        check(".5", "500m");
        check("5.", "5");
        check("0.1m", "100u");
        check("0.0000000001", "1n");
        check("99999999999999999999", "9223372036854775807");
        check("1.1Mi", "1153433600m");
        check("16384Ki", "16Mi");
    }

    #[test]
    fn refuses() {
        for text in ["", "x", "1x", "1 Gi", "--1", "1.2.3", "1ee3", "1KiB", "Gi", "1e", "."] {
            assert_eq!(text.parse::<Quantity>(), Err(QuantityError), "{text}");
        }
    }

    #[test]
    fn arithmetic() {
        let parse = |text: &str| text.parse::<Quantity>().unwrap();
        assert!(parse("1Gi") > parse("1G"));
        assert_eq!(parse("1000m"), parse("1"));
        assert_eq!(parse("100m").plus(&parse("1")).to_string(), "1100m");
        assert_eq!(parse("1Gi").minus(&parse("512Mi")).to_string(), "512Mi");
        assert_eq!(parse("1m").units(), 1);
        assert_eq!(parse("250m").milli(), 250);
        assert_eq!(Quantity::from_bytes(1 << 30).to_string(), "1Gi");
    }

    proptest! {
        #[test]
        fn canonical_text_keeps_the_value(nano in -MAX..MAX, format in 0..3) {
            let format = [Format::DecimalSi, Format::BinarySi, Format::DecimalExponent][format as usize];
            let quantity = Quantity { nano, format };
            prop_assert_eq!(quantity.to_string().parse::<Quantity>(), Ok(quantity));
        }

        #[test]
        fn any_text_is_no_panic(text in "[0-9.+\\-eEinumkKMGTP]{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
