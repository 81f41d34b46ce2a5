//! What the commands print: tables as kubectl aligns them.

use serde_json::Value;

const GAP: &str = "   ";

/// Prints a server-side `Table`; columns of a priority above 0 only when `wide`, a namespace column when asked.
pub(crate) fn table(table: &Value, wide: bool, namespaces: bool) -> String {
    let empty = Vec::new();
    let array = |value: &Value| value.as_array().unwrap_or(&empty).clone();
    let columns = array(&table["columnDefinitions"]);
    let shown: Vec<usize> = (0..columns.len())
        .filter(|index| wide || columns[*index]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut header: Vec<String> =
        shown.iter().map(|i| columns[*i]["name"].as_str().unwrap_or_default().to_uppercase()).collect();
    if namespaces {
        header.insert(0, "NAMESPACE".into());
    }
    let rows = array(&table["rows"]).into_iter().map(|row| {
        let cells = array(&row["cells"]);
        let mut line: Vec<String> =
            shown.iter().map(|index| cells.get(*index).map_or_else(String::new, cell)).collect();
        if namespaces {
            line.insert(0, cell(&row["object"]["metadata"]["namespace"]));
        }
        line
    });
    aligned(std::iter::once(header).chain(rows).collect())
}

/// Lines whose cells are padded to their column's width.
pub(crate) fn aligned(lines: Vec<Vec<String>>) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for line in &lines {
        let padded: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(padded.join(GAP).trim_end());
        out.push('\n');
    }
    out
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "<none>".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_wide_ones_wait_to_be_asked_for() {
        let value = serde_json::json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "IP", "priority": 1}, {"name": "Age", "priority": 0}],
            "rows": [
                {"cells": ["a-long-name", "10.0.0.1", "5s"], "object": {"metadata": {"namespace": "x"}}},
                {"cells": ["b", null, 7], "object": {"metadata": {"namespace": "yy"}}},
            ],
        });
        assert_eq!(table(&value, false, false), "NAME          AGE\na-long-name   5s\nb             7\n");
        assert_eq!(
            table(&value, true, true),
            "NAMESPACE   NAME          IP         AGE\nx           a-long-name   10.0.0.1   5s\nyy          b             <none>     7\n"
        );
    }
}
