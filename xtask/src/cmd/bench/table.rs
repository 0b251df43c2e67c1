//! The table of the rows, for people and for programs.

use comfy_table::{Cell, CellAlignment, Color};
use serde_json::{Value, json};

use super::machine;
use super::measure::Measured;
use super::program::Programs;
use super::rows::{Limit, Row, Unit};
use super::samples::{p50, percentile};
use super::verdict::{Held, held, ratio};
use crate::report::{painted, table, trimmed};

/// A number of a row with its unit, in three digits.
pub(super) fn human(number: f64, unit: Unit) -> String {
    let digits = |number: f64| match number.abs() {
        n if n < 9.995 => format!("{number:.2}"),
        n if n < 99.95 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    };
    match (unit, number.abs()) {
        (Unit::Kibibytes, _) => format!("{} KiB", digits(number)),
        (Unit::Time, n) if n < 999.5 => format!("{} ns", digits(number)),
        (Unit::Time, n) if n < 999_500.0 => format!("{} µs", digits(number / 1e3)),
        (Unit::Time, _) => format!("{} ms", digits(number / 1e6)),
    }
}

/// A row's cells.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) what: String,
    pub(super) p50: String,
    pub(super) p99: String,
    pub(super) others: String,
    pub(super) ratio: String,
    pub(super) target: String,
    pub(super) held: Held,
}

/// Every row's cells.
pub(super) fn lines(measured: &[Measured], programs: &Programs) -> Vec<Line> {
    let rows = measured.iter().flat_map(|m| m.group.rows.iter().map(move |row| (m, row)));
    rows.map(|(measured, row)| line(measured, row, programs)).collect()
}

fn line(measured: &Measured, row: &Row, programs: &Programs) -> Line {
    let samples = &measured.samples;
    let own = samples.get(row.side);
    let at = |percent| own.and_then(|own| percentile(own, percent));
    let (middle, late) = (at(50.0), at(99.0));
    let text = |number: Option<f64>| number.map_or("–".to_owned(), |n| human(n, row.unit));
    let sides = measured.group.rows.iter().map(|row| row.side).collect::<Vec<_>>();
    // Sides that are ours have rows of their own.
    let others = samples.keys().filter(|name| !sides.contains(&name.as_str()) && *name != "resume");
    let mut others: Vec<_> =
        others.map(|name| format!("{name} {}", text(p50(samples, name)))).collect();
    let jobs = measured.group.jobs.iter().map(|job| job.program);
    let absent = jobs.filter(|program| programs.missing.contains_key(program));
    others.extend(absent.map(|program| format!("{}: not installed", program.name())));
    let ratios = row.limits.iter().filter(|limit| matches!(limit, Limit::Times(..)));
    let ratios: Vec<_> = ratios
        .map(|limit| {
            let ratio = middle.and_then(|ours| ratio(ours, limit, samples));
            ratio.map_or("?".to_owned(), |ratio| format!("{ratio:.2}"))
        })
        .collect();
    Line {
        name: row.name.clone(),
        what: row.what.clone(),
        p50: text(middle),
        p99: text(late),
        others: others.join(", "),
        ratio: ratios.join("; "),
        target: row
            .limits
            .iter()
            .map(|limit| target(limit, row.unit))
            .collect::<Vec<_>>()
            .join("; "),
        held: middle.map_or(Held::Unknown, |ours| held(ours, &row.limits, samples)),
    }
}

/// `≤ 0.7 bdwgc`, `≤ 300 ns`.
pub(super) fn target(limit: &Limit, unit: Unit) -> String {
    match limit {
        Limit::Below(most) => format!("≤ {}", human(*most, unit)),
        Limit::Times(factor, [side]) => format!("≤ {factor} {side}"),
        Limit::Times(factor, _) => format!("≤ {factor} best peer"),
    }
}

/// The table for a terminal, with what is to be said below it.
pub(super) fn text(measured: &[Measured], programs: &Programs) -> String {
    let mut all = table(["row", "ours p50", "p99", "others p50", "ratio", "target", "held"]);
    for line in lines(measured, programs) {
        let colour = match line.held {
            Held::Yes => Color::Green,
            Held::No => Color::Red,
            Held::Unknown | Held::NoTarget => Color::Reset,
        };
        all.add_row([
            Cell::new(line.name),
            Cell::new(line.p50).set_alignment(CellAlignment::Right),
            Cell::new(line.p99).set_alignment(CellAlignment::Right),
            Cell::new(line.others),
            Cell::new(line.ratio).set_alignment(CellAlignment::Right),
            Cell::new(line.target),
            painted(Cell::new(line.held.text()), colour),
        ]);
    }
    format!("{}\n\n{}", trimmed(&all), footer(measured, programs).join("\n"))
}

/// The same in Markdown, for `docs/PERFORMANCE.md`.
pub(super) fn markdown(measured: &[Measured], programs: &Programs) -> String {
    let mut text =
        "| row | what | ours p50 | p99 | others p50 | ratio | target | held |\n".to_owned();
    text.push_str("|---|---|--:|--:|---|--:|---|---|\n");
    for line in lines(measured, programs) {
        let cells = [
            format!("`{}`", line.name),
            line.what,
            line.p50,
            line.p99,
            line.others,
            line.ratio,
            line.target,
            line.held.text().to_owned(),
        ];
        text.push_str(&markdown_row(&cells));
    }
    format!("{text}\n{}\n", footer(measured, programs).join("\n"))
}

/// A row of a table in a document.
pub(super) fn markdown_row(cells: &[String]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// What is to be known of the run: how many rows are held, what was missing, and whether other programs
/// ran.
fn footer(measured: &[Measured], programs: &Programs) -> Vec<String> {
    let lines = lines(measured, programs);
    let count = |held| lines.iter().filter(|line| line.held == held).count();
    let mut text = vec![format!(
        "{} rows: {} held, {} not, {} not known, {} without a target.",
        lines.len(),
        count(Held::Yes),
        count(Held::No),
        count(Held::Unknown),
        count(Held::NoTarget),
    )];
    text.extend(programs.missing.values().map(|why| format!("{why}.")));
    let failures = measured.iter().flat_map(|measured| &measured.failures);
    text.extend(failures.map(|why| format!("Failed: {}", why.replace('\n', "\n  "))));
    let disturbed: Vec<_> = measured.iter().filter(|m| m.load.is_disturbed()).collect();
    if disturbed.is_empty() {
        text.push("Undisturbed: nothing else ran on the machine.".to_owned());
    } else {
        text.push(
            "DISTURBED: ratios hold better than times, and neither is to be relied on.".to_owned(),
        );
        text.extend(disturbed.iter().map(|measured| {
            format!("  {}: {}", measured.group.rows[0].name, measured.load.text())
        }));
    }
    let average = machine::load_average();
    text.extend(average.map(|average| format!("Load average at the end: {average:.2}.")));
    text
}

/// For programs.
pub(super) fn json(measured: &[Measured], programs: &Programs) -> Value {
    let rows = measured.iter().flat_map(|m| m.group.rows.iter().map(move |row| (m, row)));
    let rows: Vec<_> = rows
        .map(|(measured, row)| {
            let samples = &measured.samples;
            let own = samples.get(row.side);
            let at = |percent| own.and_then(|own| percentile(own, percent));
            let others: serde_json::Map<_, _> = samples
                .iter()
                .filter(|(name, _)| *name != row.side)
                .map(|(name, _)| (name.clone(), json!(p50(samples, name))))
                .collect();
            let line = line(measured, row, programs);
            json!({
                "row": row.name,
                "what": row.what,
                "unit": if row.unit == Unit::Time { "ns" } else { "KiB" },
                "p50": at(50.0),
                "p99": at(99.0),
                "samples": own.map_or(0, Vec::len),
                "others": others,
                "targets": row.limits.iter().map(|limit| target(limit, row.unit)).collect::<Vec<_>>(),
                "ratios": row.limits.iter()
                    .map(|limit| at(50.0).and_then(|ours| ratio(ours, limit, samples)))
                    .collect::<Vec<_>>(),
                "held": match line.held {
                    Held::Yes => json!(true),
                    Held::No => json!(false),
                    Held::Unknown | Held::NoTarget => Value::Null,
                },
                "disturbed": measured.load.is_disturbed(),
            })
        })
        .collect();
    let missing: Vec<_> = programs.missing.keys().map(|program| program.name()).collect();
    json!({ "rows": rows, "missing": missing })
}

#[cfg(test)]
mod tests {
    use super::super::job::{Job, Program};
    use super::super::machine::Load;
    use super::super::rows::Group;
    use super::super::samples::Samples;
    use super::*;

    #[test]
    fn numbers_have_three_digits_and_a_unit() {
        let time = |number| human(number, Unit::Time);
        assert_eq!([time(0.93), time(12.94), time(203.2)], ["0.93 ns", "12.9 ns", "203 ns"]);
        assert_eq!([time(1150.0), time(82_040.0)], ["1.15 µs", "82.0 µs"]);
        assert_eq!([time(999_600.0), time(14_004_000.0)], ["1.00 ms", "14.0 ms"]);
        assert_eq!(time(-12.0), "-12.0 ns");
        assert_eq!(human(10.05, Unit::Kibibytes), "10.1 KiB");
    }

    fn measured(load: Load) -> Measured {
        let limits = vec![Limit::Times(0.7, &["bdwgc"]), Limit::Times(1.3, &["tgkill"])];
        let row = Row {
            name: "stop-deaf".to_owned(),
            what: "a stop".to_owned(),
            side: "ours",
            unit: Unit::Time,
            limits,
        };
        let samples = Samples::from([
            ("ours".to_owned(), vec![14_000.0, 15_000.0, 90_000.0]),
            ("tgkill".to_owned(), vec![10_000.0]),
        ]);
        let jobs = vec![Job::ours("stop-deaf", 1), Job::of(Program::Bdwgc, 1, "spin")];
        Measured { group: Group { jobs, rows: vec![row] }, samples, failures: vec![], load }
    }

    #[test]
    fn missing_peer_is_named_and_leaves_the_row_open_or_not_held() {
        let mut programs = Programs::default();
        programs.missing.insert(Program::Bdwgc, "bdwgc is not installed".to_owned());
        let lines = lines(&[measured(Load::default())], &programs);
        let line = &lines[0];
        assert_eq!(line.others, "tgkill 10.0 µs, bdwgc: not installed");
        assert_eq!(line.ratio, "?; 1.50");
        assert_eq!(line.target, "≤ 0.7 bdwgc; ≤ 1.3 tgkill");
        assert_eq!((line.p50.as_str(), line.p99.as_str()), ("15.0 µs", "90.0 µs"));
        assert_eq!(line.held, Held::No);
    }

    #[test]
    fn disturbed_run_says_so() {
        let programs = Programs::default();
        let quiet = text(&[measured(Load::default())], &programs);
        assert!(quiet.contains("Undisturbed"), "{quiet}");
        let busy = text(&[measured(Load { others: 0.5, stolen: 0.0 })], &programs);
        assert!(busy.contains("DISTURBED") && busy.contains("had 50.0 %"), "{busy}");
        assert!(busy.contains("1 rows: 0 held, 1 not, 0 not known, 0 without a target."), "{busy}");
    }
}
