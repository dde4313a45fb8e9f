//! The DNS form of a name that is not ASCII (RFC 3492), for a remedy.
//!
//! It lowers the case and does not normalize otherwise, so it is a proposal: a registrar's form may differ.

use alloc::string::String;
use alloc::vec::Vec;

const BASE: u32 = 36;
const T_MIN: u32 = 1;
const T_MAX: u32 = 26;

/// The name with each label that is not ASCII replaced by its `xn--` form.
pub(super) fn to_ascii(name: &str) -> Option<String> {
    let labels = name.split(['.', '\u{3002}']).map(|label| {
        let label = label.to_lowercase();
        if label.is_ascii() { Some(label) } else { encode(&label) }
    });
    labels.collect::<Option<Vec<_>>>().map(|labels| labels.join("."))
}

fn encode(label: &str) -> Option<String> {
    let points: Vec<u32> = label.chars().map(u32::from).collect();
    let basic: String = label.chars().filter(char::is_ascii).collect();
    let mut out = alloc::format!("xn--{basic}");
    if !basic.is_empty() {
        out.push('-');
    }
    let (mut n, mut delta, mut bias) = (128_u32, 0_u32, 72);
    let mut handled = basic.len() as u32;
    while (handled as usize) < points.len() {
        let next = points.iter().copied().filter(|point| *point >= n).min()?;
        delta = delta.checked_add((next - n).checked_mul(handled + 1)?)?;
        n = next;
        for point in &points {
            if *point < n {
                delta = delta.checked_add(1)?;
            }
            if *point == n {
                push_number(&mut out, delta, bias);
                bias = adapt(delta, handled + 1, handled == basic.len() as u32);
                delta = 0;
                handled += 1;
            }
        }
        delta = delta.checked_add(1)?;
        n += 1;
    }
    Some(out)
}

/// A number of variable length.
fn push_number(out: &mut String, mut number: u32, bias: u32) {
    let mut k = BASE;
    loop {
        let threshold = k.saturating_sub(bias).clamp(T_MIN, T_MAX);
        if number < threshold {
            return out.push(digit(number));
        }
        out.push(digit(threshold + (number - threshold) % (BASE - threshold)));
        number = (number - threshold) / (BASE - threshold);
        k += BASE;
    }
}

fn digit(value: u32) -> char {
    let byte = if value < 26 { b'a' + value as u8 } else { b'0' + (value - 26) as u8 };
    char::from(byte)
}

fn adapt(delta: u32, points: u32, is_first: bool) -> u32 {
    let mut delta = if is_first { delta / 700 } else { delta / 2 };
    delta += delta / points;
    let mut k = 0;
    while delta > (BASE - T_MIN) * T_MAX / 2 {
        delta /= BASE - T_MIN;
        k += BASE;
    }
    k + (BASE - T_MIN + 1) * delta / (delta + 38)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_their_dns_form() {
        let cases = [
            ("bücher.example", "xn--bcher-kva.example"),
            ("Bücher.example", "xn--bcher-kva.example"),
            ("münchen.de", "xn--mnchen-3ya.de"),
            ("例え.テスト", "xn--r8jz45g.xn--zckzah"),
            ("пример.испытание", "xn--e1afmkfd.xn--80akhbyknj4f"),
            ("ascii.example", "ascii.example"),
        ];
        for (name, ascii) in cases {
            assert_eq!(to_ascii(name).as_deref(), Some(ascii), "{name}");
        }
    }
}
