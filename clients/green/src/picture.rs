//! The shares, drawn.

use std::error::Error;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Run, TOLERANCE};

const SIZE: (u32, u32) = (720, 280);
const TEXT: (&str, i32) = ("sans-serif", 13);

/// An SVG: a bar for each loop, and the band in which all should end.
pub(crate) fn draw(run: &Run) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let loops = run.shares.len();
        let mut chart = ChartBuilder::on(&root)
            .margin(16)
            .caption(caption(run), ("sans-serif", 15))
            .x_label_area_size(28)
            .y_label_area_size(44)
            .build_cartesian_2d(0.0..loops as f64, 0.0..1.4)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc("rounds, of its share")
            .y_labels(8)
            .light_line_style(TRANSPARENT)
            .label_style(TEXT)
            .draw()?;
        let band = [(0.0, 1.0 - TOLERANCE), (loops as f64, 1.0 + TOLERANCE)];
        chart.draw_series([Rectangle::new(band, GREEN.mix(0.12).filled())])?;
        let bars = run.shares.iter().enumerate().map(|(number, share)| {
            let left = number as f64;
            Rectangle::new(
                [(left + 0.15, 0.0), (left + 0.85, share.of_rounds)],
                BLUE.mix(0.6).filled(),
            )
        });
        chart.draw_series(bars)?;
        let above = TEXT.into_text_style(&root).pos(Pos::new(HPos::Center, VPos::Bottom));
        let texts = run.shares.iter().enumerate().map(|(number, share)| {
            let at = (number as f64 + 0.5, share.of_rounds + 0.02);
            Text::new(format!("{:.3}", share.of_rounds), at, above.clone())
        });
        chart.draw_series(texts)?;
        let below = TEXT.into_text_style(&root).pos(Pos::new(HPos::Center, VPos::Top));
        let names = (0..loops).map(|number| {
            Text::new(format!("loop {number}"), (number as f64 + 0.5, -0.03), below.clone())
        });
        chart.draw_series(names)?;
        root.present()?;
    }
    Ok(svg)
}

fn caption(run: &Run) -> String {
    format!(
        "{} endless loops on {} threads, slices of {:?}, {} preemptions in {:.0} s",
        run.shares.len(),
        run.threads,
        run.slice,
        run.preempted(),
        run.lasted.as_secs_f64(),
    )
}
