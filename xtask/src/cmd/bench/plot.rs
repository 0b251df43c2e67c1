//! The picture of how costs grow: an SVG that is read on light and on dark paper.

use std::error::Error;
use std::ops::Range;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::growth::Grown;
use super::model::Point;

/// In pixels; the page scales it.
const SIZE: (u32, u32) = (1200, 860);

/// The two colours that the style sheet exchanges on dark paper.
const INK: RGBColor = RGBColor(0x24, 0x29, 0x2F);
const PAPER: RGBColor = RGBColor(0xFE, 0xFE, 0xFE);
const FAINT: RGBColor = RGBColor(0xD0, 0xD7, 0xDE);

/// Of medium lightness: they are seen on both. Ours are blue and green.
const OURS: [RGBColor; 3] =
    [RGBColor(0x1F, 0x77, 0xE6), RGBColor(0x0F, 0xA3, 0x8B), RGBColor(0x6B, 0x5C, 0xE0)];
const PEERS: [(&str, RGBColor); 6] = [
    ("bdwgc", RGBColor(0xD9, 0x77, 0x06)),
    ("HotSpot", RGBColor(0xDB, 0x3A, 0x34)),
    ("glibc", RGBColor(0xD9, 0x77, 0x06)),
    ("musl", RGBColor(0xB8, 0x5C, 0xC4)),
    ("libpsx", RGBColor(0xDB, 0x3A, 0x34)),
    ("Go", RGBColor(0xA0, 0x7A, 0x2C)),
];
/// The least that could do.
const FLOOR: RGBColor = RGBColor(0x8B, 0x94, 0x9E);

/// The numbers of processors that the model is asked about.
pub(super) const PREDICTED: [usize; 3] = [16, 64, 256];
/// The lengths of their dashes.
const DASHES: [u32; 3] = [9, 5, 2];

/// Draws all panels. `largest` is the largest number of threads.
pub(super) fn draw(grown: &[Grown], largest: usize) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&PAPER)?;
        let areas = root.split_evenly((2, 3));
        for (one, area) in grown.iter().zip(&areas) {
            panel(one, area, largest)?;
        }
        if let Some(area) = areas.get(grown.len()) {
            note(area)?;
        }
        root.present()?;
    }
    Ok(for_both_papers(&svg))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn colour(grown: &Grown, side: &str) -> RGBColor {
    if let Some(at) = grown.panel.ours.iter().position(|own| *own == side) {
        return OURS[at % OURS.len()];
    }
    PEERS.iter().find(|(name, _)| *name == side).map_or(FLOOR, |(_, colour)| *colour)
}

fn panel(grown: &Grown, area: &Area<'_>, largest: usize) -> Result<(), Box<dyn Error>> {
    let text = |size: u32| ("sans-serif", size).into_font().color(&INK);
    let mut chart = ChartBuilder::on(area)
        .caption(grown.panel.title, text(17))
        .margin(10)
        .x_label_area_size(34)
        .y_label_area_size(58)
        .build_cartesian_2d((1.0..largest as f64).log_scale(), span(grown, largest).log_scale())?;
    chart
        .configure_mesh()
        .axis_style(INK)
        .bold_line_style(FAINT.mix(0.6))
        .light_line_style(TRANSPARENT)
        .label_style(text(12))
        .x_desc("threads")
        .x_labels(5)
        .y_labels(7)
        .x_label_formatter(&|n| format!("{n:.0}"))
        .y_label_formatter(&|nanoseconds| axis(*nanoseconds))
        .draw()?;
    for (side, points) in &grown.curves {
        let colour = colour(grown, side);
        let own = grown.panel.ours.contains(&side.as_str());
        let style = colour.stroke_width(if own { 3 } else { 2 });
        let at: Vec<_> = points.iter().map(position).collect();
        let name = if own && side != "ours" { format!("ours, {side}") } else { side.clone() };
        chart
            .draw_series(LineSeries::new(at.iter().copied(), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        chart.draw_series(at.iter().map(|&at| Circle::new(at, 3, colour.filled())))?;
    }
    for (side, (costs, _)) in &grown.costs {
        let colour = colour(grown, side);
        // A curve is drawn where there are threads for all processors: below, it is that of fewer processors.
        let asked =
            PREDICTED.into_iter().zip(DASHES).filter(|(processors, _)| *processors < largest);
        for (processors, dash) in asked {
            let (first, last) = (processors as f64, largest as f64);
            let sizes = (0..=40).map(|step| first * (last / first).powf(f64::from(step) / 40.0));
            let curve = sizes.map(|n| (n, costs.predict(n.round() as usize, processors)));
            let style = colour.mix(0.75).stroke_width(1);
            chart.draw_series(DashedLineSeries::new(curve, dash, 3, style))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(text(12))
        .background_style(PAPER.mix(0.85))
        .border_style(TRANSPARENT)
        .margin(4)
        .draw()?;
    Ok(())
}

fn position(point: &Point) -> (f64, f64) {
    (point.threads as f64, point.nanoseconds)
}

/// The times of a panel, those that are predicted among them, in whole decades.
fn span(grown: &Grown, largest: usize) -> Range<f64> {
    let measured = grown.curves.values().flatten().map(|point| point.nanoseconds);
    let ends = grown.costs.values().flat_map(|(costs, _)| {
        PREDICTED.into_iter().flat_map(|p| [1, largest].map(|n| costs.predict(n, p)))
    });
    let all: Vec<f64> = measured.chain(ends).filter(|time| *time > 0.0).collect();
    let least = all.iter().copied().fold(f64::INFINITY, f64::min).clamp(1.0, 1e9);
    let most = all.iter().copied().fold(1.0, f64::max);
    10_f64.powf(least.log10().floor())..10_f64.powf(most.log10().ceil()).max(least * 10.0)
}

/// A time at an axis: whole decades.
fn axis(nanoseconds: f64) -> String {
    match nanoseconds {
        n if n < 999.0 => format!("{n:.0} ns"),
        n if n < 999_000.0 => format!("{:.0} µs", n / 1e3),
        n if n < 999_000_000.0 => format!("{:.0} ms", n / 1e6),
        n => format!("{:.0} s", n / 1e9),
    }
}

/// What the lines mean.
fn note(area: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let text = ("sans-serif", 14).into_font().color(&INK);
    let lines = [
        "Lines with dots are measured (p50),".to_owned(),
        format!("on {processors} processors."),
        String::new(),
        "Dashed lines are PREDICTED by the fitted".to_owned(),
        "model. No such machine was measured.".to_owned(),
        "Each begins with a thread a processor.".to_owned(),
    ];
    let mut y = 60;
    for line in lines {
        area.draw(&Text::new(line, (40, y), text.clone()))?;
        y += 22;
    }
    for (processors, dash) in PREDICTED.into_iter().zip(DASHES) {
        let sample = [(40, y + 8), (100, y + 8)];
        let style = OURS[0].stroke_width(1);
        area.draw(&DashedPathElement::new(sample, dash, 3, style))?;
        area.draw(&Text::new(format!("{processors} processors"), (112, y), text.clone()))?;
        y += 22;
    }
    area.draw(&Text::new("Grey: the least that could do.", (40, y + 22), text))?;
    Ok(())
}

/// Has the page's reader choose the colours of ink and paper: a style sheet goes before attributes.
fn for_both_papers(svg: &str) -> String {
    const DARK: &str = r##"<style>@media (prefers-color-scheme: dark) {
  [fill="#24292F"] { fill: #E6EDF3 } [stroke="#24292F"] { stroke: #E6EDF3 }
  [fill="#FEFEFE"] { fill: #0D1117 } [stroke="#D0D7DE"] { stroke: #3D444D }
}</style>"##;
    match svg.find('>') {
        Some(end) => format!("{}\n{DARK}{}", &svg[..=end], &svg[end + 1..]),
        None => svg.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::growth::panels;
    use super::super::machine::Load;
    use super::super::model::fit;
    use super::*;

    fn grown() -> Vec<Grown> {
        let point = |threads: usize| Point {
            threads,
            processors: 2,
            nanoseconds: 100.0 + 20.0 * threads as f64,
        };
        let points: Vec<_> = [1, 10, 100, 1000].map(point).to_vec();
        let one = |panel: super::super::growth::Panel| {
            let own = panel.ours[0];
            let sides = [own, "glibc"].map(|side| (side.to_owned(), points.clone()));
            let costs = fit(&points).unwrap();
            Grown {
                costs: [(own, (costs, 0.0))].into(),
                curves: BTreeMap::from(sides),
                panel,
                failures: vec![],
                load: Load::default(),
            }
        };
        panels().into_iter().map(one).collect()
    }

    #[test]
    fn picture_has_every_panel_and_side_and_both_papers() {
        let svg = draw(&grown(), 1000).unwrap();
        for panel in panels() {
            assert!(svg.contains(panel.title), "{}", panel.title);
        }
        for words in
            ["glibc", "PREDICTED", "256 processors", "threads", "prefers-color-scheme: dark"]
        {
            assert!(svg.contains(words), "{words}");
        }
        // The colours that the style sheet exchanges are those that are drawn.
        for colour in [r##"fill="#24292F""##, r##"fill="#FEFEFE""##] {
            assert!(svg.matches(colour).count() > 1, "{colour}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn axes_are_whole_decades() {
        assert_eq!(span(&grown()[0], 1000), 100.0..100_000.0);
        assert_eq!(
            [axis(10.0), axis(1e3), axis(1e7), axis(1e9)],
            ["10 ns", "1 µs", "10 ms", "1 s"]
        );
    }
}
