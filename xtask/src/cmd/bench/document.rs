//! What the command writes into `docs/PERFORMANCE.md`: text between two markers.

use std::fs;

use super::growth::Grown;
use super::model::TERMS;
use super::plot::PREDICTED;
use super::rows::Unit;
use super::table::{human, markdown_row};
use crate::workspace::Workspace;

const PATH: &str = "docs/PERFORMANCE.md";

/// Where the picture is.
pub(super) const PICTURE: &str = "docs/performance.svg";

/// Parts of the document that are generated.
pub(super) const TABLE: &str = "measured table";
pub(super) const MODEL: &str = "fitted model";

/// Puts `text` into the document, in place of what is between the markers of `part`.
pub(super) fn write(workspace: &Workspace, part: &str, text: &str) -> Result<(), String> {
    let path = workspace.root.join(PATH);
    let cannot = |error| format!("{PATH}: {error}");
    let old = fs::read_to_string(&path).map_err(cannot)?;
    fs::write(&path, replaced(&old, part, text)?).map_err(cannot)
}

/// The document with another text between two markers.
fn replaced(document: &str, part: &str, text: &str) -> Result<String, String> {
    let (begin, end) = (format!("<!-- {part} -->\n"), format!("<!-- end of {part} -->"));
    let parts = document.split_once(&begin).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&end)?;
        Some((before, after))
    });
    let (before, after) = parts.ok_or_else(|| format!("{PATH} has no markers of `{part}`"))?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", text.trim()))
}

/// The costs that were fitted, and what they predict.
pub(super) fn model(grown: &[Grown], largest: usize) -> String {
    let mut heads = vec!["operation".to_owned()];
    heads.extend(TERMS.map(str::to_owned));
    heads.push("off by".to_owned());
    heads.extend(PREDICTED.map(|processors| format!("{largest} threads on {processors}")));
    let mut text = markdown_row(&heads);
    text.push_str("|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for one in grown {
        for (side, (costs, error)) in &one.costs {
            let name = if *side == "ours" { String::new() } else { format!(": {side}") };
            let time = |nanoseconds| human(nanoseconds, Unit::Time);
            let mut cells = vec![format!("{}{name}", one.panel.title)];
            cells.extend(costs.0.iter().map(|&cost| time(cost)));
            cells.push(format!("{:.0} %", error * 100.0));
            cells.extend(PREDICTED.map(|p| format!("*{}*", time(costs.predict(largest, p)))));
            text.push_str(&markdown_row(&cells));
        }
    }
    text
}

/// The measured points.
pub(super) fn points(grown: &[Grown], sizes: &[usize]) -> String {
    let heads: Vec<_> = sizes.iter().map(usize::to_string).collect();
    let mut text =
        format!("| p50 | {} |\n|---|{}\n", heads.join(" | "), "--:|".repeat(sizes.len()));
    for one in grown {
        for (side, points) in &one.curves {
            let cell = |size: &usize| {
                let point = points.iter().find(|point| point.threads == *size);
                point.map_or("–".to_owned(), |point| human(point.nanoseconds, Unit::Time))
            };
            let mut cells = vec![format!("{}: {side}", one.panel.title)];
            cells.extend(sizes.iter().map(cell));
            text.push_str(&markdown_row(&cells));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_between_markers_is_replaced_and_nothing_else() {
        let old = "# Title\n\n<!-- a -->\nold\n<!-- end of a -->\nrest\n";
        let new = replaced(old, "a", "new\n").unwrap();
        assert_eq!(new, "# Title\n\n<!-- a -->\n\nnew\n\n<!-- end of a -->\nrest\n");
        assert_eq!(replaced(&new, "a", "new").unwrap(), new);
        assert!(replaced(old, "b", "new").unwrap_err().contains("no markers of `b`"));
    }

    #[test]
    fn document_has_all_markers_and_the_picture() {
        let text = fs::read_to_string(Workspace::find().root.join(PATH)).unwrap();
        for part in [TABLE, MODEL] {
            replaced(&text, part, "").unwrap();
        }
        assert!(text.contains("](performance.svg)"), "{PICTURE} is shown");
    }
}
