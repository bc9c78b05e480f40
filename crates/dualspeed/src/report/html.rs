//! One self-contained HTML page: headings, paragraphs, tables, plots and pictures, no script and no
//! outside file.

use base64::Engine;

/// Builds a page piece by piece.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    body: String,
}

impl Page {
    /// Makes an empty page with a title and a line under it.
    pub fn new(title: &str, subtitle: &str) -> Self {
        let body =
            format!("<h1>{}</h1>\n<p class=\"sub\">{}</p>\n", escape(title), escape(subtitle));
        Self { title: title.into(), body }
    }

    /// Adds a heading.
    pub fn heading(mut self, text: &str) -> Self {
        self.body += &format!("<h2>{}</h2>\n", escape(text));
        self
    }

    /// Adds a paragraph of plain text.
    pub fn paragraph(mut self, text: &str) -> Self {
        self.body += &format!("<p>{}</p>\n", escape(text));
        self
    }

    /// Adds a block of fixed-width text, such as a command or a configuration.
    pub fn code(mut self, text: &str) -> Self {
        self.body += &format!("<pre>{}</pre>\n", escape(text));
        self
    }

    /// Adds a table; numbers are right-aligned, columns of text left-aligned and wrapped.
    pub fn table(mut self, header: &[String], rows: &[Vec<String>]) -> Self {
        let starts_a_number = |text: &str| {
            text.is_empty() || text.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c))
        };
        let is_text = |column: usize| {
            let mut cells = rows.iter().filter_map(|row| row.get(column));
            cells.any(|cell| !starts_a_number(cell))
        };
        let texts: Vec<bool> = (0..header.len()).map(is_text).collect();
        let cells = |row: &[String], tag: &str| {
            let cell = |(column, text): (usize, &String)| {
                let text_column = texts.get(column).copied().unwrap_or(false);
                let class = if text_column && column > 0 { " class=\"text\"" } else { "" };
                format!("<{tag}{class}>{}</{tag}>", escape(text))
            };
            row.iter().enumerate().map(cell).collect::<String>()
        };
        self.body += "<div class=\"scroll\"><table><thead><tr>";
        self.body += &cells(header, "th");
        self.body += "</tr></thead><tbody>\n";
        for row in rows {
            self.body += &format!("<tr>{}</tr>\n", cells(row, "td"));
        }
        self.body += "</tbody></table></div>\n";
        self
    }

    /// Adds SVG plots side by side, wrapping on narrow windows.
    pub fn plots(mut self, svgs: &[String]) -> Self {
        self.body += "<div class=\"plots\">";
        for svg in svgs {
            self.body += &format!("<figure>{svg}</figure>");
        }
        self.body += "</div>\n";
        self
    }

    /// Adds a PNG picture with a caption.
    pub fn png(mut self, png: &[u8], caption: &str) -> Self {
        let data = base64::engine::general_purpose::STANDARD.encode(png);
        let text = escape(caption);
        self.body += &format!(
            "<figure><img alt=\"{text}\" src=\"data:image/png;base64,{data}\"><figcaption>{text}</figcaption></figure>\n"
        );
        self
    }

    /// Gives the whole document.
    pub fn finish(self) -> String {
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
             <title>{}</title><style>{STYLE}</style></head>\n<body><main>\n{}</main></body></html>\n",
            escape(&self.title),
            self.body
        )
    }
}

const STYLE: &str = "
:root{--ink:#1c1e21;--soft:#5d6470;--line:#e3e6ea;--page:#fff;--tint:#f6f7f9}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa3af;--line:#33383f;--page:#16181b;--tint:#1f2226}}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,sans-serif}
table{width:100%}main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0}h2{font-size:19px;margin:36px 0 8px}.sub{color:var(--soft);margin-top:4px}
p{max-width:72ch}pre{background:var(--tint);padding:12px 14px;border-radius:8px;overflow:auto;font-size:13px}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
td{white-space:nowrap}th,td{padding:6px 0 6px 12px;border-bottom:1px solid var(--line);text-align:right}
th{color:var(--soft);font-weight:600;vertical-align:bottom}th:first-child,td:first-child{text-align:left;padding-left:0;white-space:nowrap}.text{white-space:normal;text-align:left}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:16px}
figure{margin:12px 0}figure svg{width:100%;height:auto;border:1px solid var(--line);border-radius:8px}
img{max-width:100%;border-radius:8px}figcaption{color:var(--soft);font-size:14px;margin-top:6px}
";

/// Escapes text for HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_break_out_of_its_place() {
        let page =
            Page::new("a<b", "c & d").table(&["<x>".into()], &[vec!["\"1\"".into()]]).finish();
        assert!(
            page.contains("a&lt;b") && page.contains("&lt;x&gt;") && page.contains("&quot;1&quot;")
        );
        assert!(!page.contains("<x>"));
    }
}
