//! The timeline as a picture: an SVG that is read on light and on dark paper.

use core::fmt::{self, Display, Write as _};
use core::time::Duration;
use std::io::{self, Write};

use crate::timeline::{Activity, ForEachSpan, HandshakeSpan, MutatorTrack, StopSpan, Timeline};

/// In pixels; the page scales them.
const WIDTH: f64 = 1200.0;
const LEFT: f64 = 170.0;
const RIGHT: f64 = 24.0;
const TOP: f64 = 46.0;
const ROW: f64 = 30.0;
const BAR: f64 = 18.0;
const PLOT: f64 = WIDTH - LEFT - RIGHT;

/// The colours that the style sheet exchanges on dark paper.
const INK: &str = "#24292F";
const PAPER: &str = "#FEFEFE";
const FAINT: &str = "#D0D7DE";
/// Of medium lightness: these are seen on both.
const STOP: &str = "#8B949E";
const EACH: &str = "#D2A8FF";
const HANDSHAKE: &str = "#E377C2";

const ACTIVITIES: [(Activity, &str, &str); 5] = [
    (Activity::Running, "#1F77E6", "running"),
    (Activity::Safe, "#0FA38B", "in a safe region"),
    (Activity::Stopped, "#E3A008", "stopped, or waiting"),
    (Activity::Requesting, "#8A63D2", "has the world stopped"),
    (Activity::Late, "#DB3A34", "late"),
];

const STYLE: &str = r##"<style>text { font-family: sans-serif; font-size: 13px }
@media (prefers-color-scheme: dark) {
  [fill="#24292F"] { fill: #E6EDF3 } [stroke="#24292F"] { stroke: #E6EDF3 }
  [fill="#FEFEFE"] { fill: #0D1117 } [stroke="#D0D7DE"] { stroke: #3D444D }
}</style>"##;

impl Timeline {
    /// Draws the timeline: a row for each mutator, by their names, and stops, for-eaches and handshakes with all
    /// mutators as bands behind them. A handshake with one mutator is a line under its row. What is shorter than half a
    /// pixel is drawn by what is most of it, and late if any is.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn to_svg(&self, to: impl Write) -> io::Result<()> {
        self.to_svg_between(Duration::ZERO, self.length(), to)
    }

    /// Draws a part of the timeline as [`Timeline::to_svg`] does: from one time since the recording began to another.
    ///
    /// # Errors
    ///
    /// Those of `to`.
    pub fn to_svg_between(
        &self,
        from: Duration,
        to: Duration,
        mut writer: impl Write,
    ) -> io::Result<()> {
        let length = to.saturating_sub(from).max(Duration::from_nanos(1));
        let mut picture = Picture { from, length, svg: String::new() };
        // Writing to memory does not fail.
        picture.draw(self).map_err(io::Error::other)?;
        writer.write_all(picture.svg.as_bytes())
    }
}

/// A text in an SVG.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|letter| match letter {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            letter if letter.is_control() => f.write_char('\u{fffd}'),
            letter => f.write_char(letter),
        })
    }
}

struct Picture {
    from: Duration,
    /// Not zero.
    length: Duration,
    svg: String,
}

#[expect(clippy::cast_precision_loss, reason = "pixels and letters are few")]
impl Picture {
    fn x(&self, at: Duration) -> f64 {
        let at = at.saturating_sub(self.from).min(self.length);
        LEFT + PLOT * at.as_secs_f64() / self.length.as_secs_f64()
    }

    /// Whether what lasted from one time to the other is in the picture.
    fn shows(&self, from: Duration, to: Duration) -> bool {
        from <= self.from + self.length && to >= self.from
    }

    fn draw(&mut self, timeline: &Timeline) -> fmt::Result {
        let is_shown =
            |track: &MutatorTrack| track.spans.iter().any(|span| self.shows(span.from, span.to));
        let mut tracks: Vec<_> = timeline.mutators().iter().enumerate().collect();
        tracks.retain(|(_, track)| is_shown(track));
        tracks.sort_by_key(|(_, track)| track.name.to_string());
        let bottom = TOP + ROW * tracks.len() as f64;
        let height = bottom + 106.0;
        writeln!(
            self.svg,
            r#"<svg width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" xmlns="http://www.w3.org/2000/svg">"#
        )?;
        writeln!(self.svg, "{STYLE}")?;
        self.rect([0.0, 0.0, WIDTH, height], PAPER, 1.0, "")?;
        self.axis(bottom)?;
        // Behind the rows, whose colours they would change.
        self.for_eaches(timeline.for_eaches(), bottom)?;
        self.stops(timeline.stops(), bottom)?;
        let band = [TOP - 6.0, bottom - TOP + 12.0, 0.25];
        self.handshakes(timeline, |handshake| handshake.asked != 1, band)?;
        for (row, (at, track)) in tracks.into_iter().enumerate() {
            let top = TOP + ROW * row as f64;
            self.track(track, top)?;
            let line = [top + f64::midpoint(ROW, BAR), 4.0, 1.0];
            self.handshakes(timeline, |handshake| handshake.target == Some(at), line)?;
        }
        self.legend(bottom + 62.0)?;
        writeln!(self.svg, "</svg>")
    }

    /// `place`: left, top, width, height.
    fn rect(&mut self, place: [f64; 4], colour: &str, opacity: f64, title: &str) -> fmt::Result {
        let [x, y, width, height] = place;
        write!(
            self.svg,
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}" fill-opacity="{opacity}""#
        )?;
        if title.is_empty() {
            writeln!(self.svg, "/>")
        } else {
            writeln!(self.svg, "><title>{}</title></rect>", Escaped(title))
        }
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) -> fmt::Result {
        writeln!(
            self.svg,
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" fill="{INK}">{}</text>"#,
            Escaped(text)
        )
    }

    fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], colour: &str, width: f64) -> fmt::Result {
        writeln!(
            self.svg,
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}" stroke-width="{width}"/>"#
        )
    }

    fn axis(&mut self, bottom: f64) -> fmt::Result {
        let step = step(self.length);
        let first =
            u32::try_from(self.from.as_nanos().div_ceil(step.as_nanos())).unwrap_or(u32::MAX);
        let marks = (first..).map_while(|mark| step.checked_mul(mark));
        let marks = marks.take_while(|at| self.shows(*at, *at));
        for at in marks.collect::<Vec<_>>() {
            let x = self.x(at);
            self.line([x, TOP - 6.0, x, bottom + 6.0], FAINT, 1.0)?;
            self.text(x, bottom + 22.0, "middle", &label(at, step))?;
        }
        Ok(())
    }

    fn track(&mut self, track: &MutatorTrack, top: f64) -> fmt::Result {
        let name = track.name.to_string();
        let who = if name.is_empty() { format!("thread {}", track.tid) } else { name };
        self.text(LEFT - 12.0, top + ROW / 2.0 + 4.0, "end", &who)?;
        let top = top + (ROW - BAR) / 2.0;
        for (from, to, activity) in self.bins(track) {
            let colour = ACTIVITIES.iter().find(|(of, ..)| *of == activity).map_or(INK, |of| of.1);
            self.rect([from, top, to - from, BAR], colour, 1.0, "")?;
        }
        let nudges = track.nudges.iter().filter(|mark| self.shows(mark.at, mark.at));
        for mark in nudges.collect::<Vec<_>>() {
            let x = self.x(mark.at);
            let (left, right, tip) = (x - 4.0, x + 4.0, top + 3.0);
            writeln!(
                self.svg,
                r#"<path d="M{left:.1} {up:.1}H{right:.1}L{x:.1} {tip:.1}Z" fill="{INK}"/>"#,
                up = top - 5.0,
            )?;
        }
        Ok(())
    }

    /// What is drawn of a row: from, to, and what. In half pixels, so that there is a bound to how much it is.
    fn bins(&self, track: &MutatorTrack) -> Vec<(f64, f64, Activity)> {
        const BINS: usize = PLOT as usize * 2;
        let mut bins = vec![[0.0; ACTIVITIES.len()]; BINS];
        let place = |at| (self.x(at) - LEFT) / PLOT * BINS as f64;
        for span in &track.spans {
            let (from, to) = (place(span.from), place(span.to));
            let kind = ACTIVITIES.iter().position(|(of, ..)| *of == span.activity).unwrap_or(0);
            let (first, end) = (from as usize, (to.ceil() as usize).min(BINS));
            for (bin, shares) in bins.iter_mut().enumerate().take(end).skip(first) {
                let (left, right) = (from.max(bin as f64), to.min(bin as f64 + 1.0));
                shares[kind] += (right - left).max(0.0);
            }
        }
        let mut drawn: Vec<(f64, f64, Activity)> = Vec::new();
        for (bin, shares) in bins.iter().enumerate() {
            let late = ACTIVITIES.len() - 1;
            let most = (0..late)
                .fold(0, |most, kind| if shares[kind] > shares[most] { kind } else { most });
            let kind = if shares[late] > 0.0 { late } else { most };
            if shares[kind] <= 0.0 {
                continue;
            }
            let at = |bin: usize| LEFT + PLOT * bin as f64 / BINS as f64;
            let (from, to, activity) = (at(bin), at(bin + 1), ACTIVITIES[kind].0);
            match drawn.last_mut() {
                Some(last) if last.2 == activity && from - last.1 < 0.1 => last.1 = to,
                _ => drawn.push((from, to, activity)),
            }
        }
        drawn
    }

    fn for_eaches(&mut self, for_eaches: &[ForEachSpan], bottom: f64) -> fmt::Result {
        let (top, height) = (TOP - 6.0, bottom - TOP + 12.0);
        let shown = for_eaches.iter().filter(|each| self.shows(each.requested, each.ended));
        for each in shown.collect::<Vec<_>>() {
            let (requested, ended) = (self.x(each.requested), self.x(each.ended));
            let lasted = each.ended.saturating_sub(each.requested);
            let title = format!("for-each: {} visited in {lasted:.1?}", each.visited);
            self.rect([requested, top, (ended - requested).max(1.0), height], EACH, 0.25, &title)?;
        }
        Ok(())
    }

    /// Those of a kind, in a band.
    fn handshakes(
        &mut self,
        timeline: &Timeline,
        is_meant: impl Fn(&HandshakeSpan) -> bool,
        [top, height, opacity]: [f64; 3],
    ) -> fmt::Result {
        for handshake in timeline.handshakes().iter().filter(|handshake| is_meant(handshake)) {
            let HandshakeSpan { requested, ended, asked, answered, given_up, .. } = *handshake;
            if !self.shows(requested, ended) {
                continue;
            }
            let lasted = ended.saturating_sub(requested);
            let how = if given_up { "given up after" } else { "over in" };
            let title = format!("handshake: {answered} of {asked} answered, {how} {lasted:.1?}");
            let (requested, ended) = (self.x(requested), self.x(ended));
            let width = (ended - requested).max(1.0);
            self.rect([requested, top, width, height], HANDSHAKE, opacity, &title)?;
        }
        Ok(())
    }

    fn stops(&mut self, stops: &[StopSpan], bottom: f64) -> fmt::Result {
        let (top, height) = (TOP - 6.0, bottom - TOP + 12.0);
        let mut written = LEFT - 100.0;
        let shown = stops.iter().filter(|stop| self.shows(stop.started, stop.ended));
        for stop in shown.collect::<Vec<_>>() {
            let all_stopped = stop.stopped.unwrap_or(stop.ended);
            let (started, stopped) = (self.x(stop.started), self.x(all_stopped));
            let ended = self.x(stop.ended);
            let to_stop = all_stopped.saturating_sub(stop.started);
            let lasted = stop.ended.saturating_sub(all_stopped);
            let title = match stop.stopped {
                Some(_) => format!(
                    "{}: {to_stop:.1?} until all {} had stopped, stopped for {lasted:.1?}",
                    stop.reason, stop.mutators
                ),
                None => format!("{}: given up after {to_stop:.1?}", stop.reason),
            };
            if stopped - started >= 0.5 {
                self.rect([started, top, stopped - started, height], STOP, 0.25, &title)?;
            }
            if stop.stopped.is_some() {
                let width = (ended - stopped).max(1.0);
                self.rect([stopped, top, width, height], STOP, 0.6, &title)?;
            }
            // Where there is room beside the one before.
            let name = stop.reason.as_str();
            let at = f64::midpoint(started, ended);
            let half = 4.0 * name.chars().count() as f64;
            if at - half > written + 6.0 {
                self.text(at, top - 8.0, "middle", name)?;
                written = at + half;
            }
        }
        Ok(())
    }

    fn legend(&mut self, y: f64) -> fmt::Result {
        let mut x = LEFT;
        for (_, colour, name) in ACTIVITIES {
            self.rect([x, y - 11.0, 14.0, 12.0], colour, 1.0, "")?;
            self.text(x + 20.0, y, "start", name)?;
            x += 38.0 + 7.0 * name.len() as f64;
        }
        // Requests.
        let (mut x, y) = (LEFT, y + 22.0);
        self.rect([x, y - 13.0, 8.0, 16.0], STOP, 0.25, "")?;
        self.rect([x + 8.0, y - 13.0, 12.0, 16.0], STOP, 0.6, "")?;
        self.text(x + 26.0, y, "start", "a stop: asked for, held")?;
        x += 182.0;
        self.rect([x, y - 13.0, 14.0, 16.0], EACH, 0.25, "")?;
        self.text(x + 20.0, y, "start", "a for-each")?;
        x += 100.0;
        self.rect([x, y - 13.0, 14.0, 16.0], HANDSHAKE, 0.25, "")?;
        self.rect([x, y - 1.0, 14.0, 4.0], HANDSHAKE, 1.0, "")?;
        self.text(x + 20.0, y, "start", "a handshake: with all, with one")?;
        x += 240.0;
        writeln!(self.svg, r#"<path d="M{x:.1} {up:.1}h8l-4 8Z" fill="{INK}"/>"#, up = y - 9.0)?;
        self.text(x + 14.0, y, "start", "nudge")
    }
}

/// From one mark of the axis to the next: 1, 2 or 5 of a decade, for eight marks or so.
fn step(length: Duration) -> Duration {
    let least = (length.as_nanos() / 10).max(1) as u64;
    let decade = 10_u64.pow(least.ilog10());
    let steps = [decade, 2 * decade, 5 * decade, 10 * decade];
    Duration::from_nanos(steps.into_iter().find(|step| *step >= least).unwrap_or(10 * decade))
}

/// A time at the axis, in the unit that its steps are whole in.
fn label(at: Duration, step: Duration) -> String {
    match step.as_nanos() {
        0..1_000 => format!("{} ns", at.as_nanos()),
        1_000..1_000_000 => format!("{} µs", at.as_micros()),
        1_000_000..1_000_000_000 => format!("{} ms", at.as_millis()),
        _ => format!("{} s", at.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::protocol::Glance;
    use crate::timeline::Sampled;
    use crate::timeline::tests::{handshake, stop, timeline, us};

    #[test]
    fn the_picture_is_well_formed_whatever_threads_are_called() {
        let timeline = timeline(&[(0, Glance::Runs)], |start| {
            vec![stop(start, [90, 150, 250]), handshake(start, [300, 400])]
        });
        let mut text = Vec::new();
        timeline.to_svg(&mut text).expect("into memory");
        let text = String::from_utf8(text).expect("UTF-8");
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
        assert!(text.contains("&lt;a&gt; &amp; &quot;b&quot;") && text.contains(">gc<"), "{text}");
        assert!(text.contains(">handshake: 1 of 1 answered, over in 100.0µs<"), "{text}");
    }

    #[test]
    fn a_timeline_of_nothing_is_drawn() {
        let timeline = Timeline::new(Sampled::new(Instant::now()), 0);
        let mut text = Vec::new();
        timeline.to_svg(&mut text).expect("into memory");
        timeline.to_chrome_json(&mut text).expect("into memory");
        assert!(timeline.mutators().is_empty() && timeline.stops().is_empty());
    }

    #[test]
    fn an_axis_has_whole_steps() {
        let marks = [us(1), us(950), us(7_000), Duration::from_secs(3)].map(step);
        let steps = [Duration::from_nanos(100), us(100), us(1000), us(500_000)];
        assert_eq!(marks, steps);
        assert_eq!(label(us(1500), us(500)), "1500 µs");
        assert_eq!(label(us(2000), us(1000)), "2 ms");
    }
}
