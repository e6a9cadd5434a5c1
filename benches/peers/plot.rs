//! The table as a picture: a bar for every row that has a peer and a target, as an SVG that needs nothing else.

use std::fmt::Write as _;

/// One row: how many times better than its peer Larder is, and how many times it should be.
pub struct Bar {
    /// What was measured.
    pub what: String,
    /// Beside whom.
    pub peer: String,
    /// Larder by the peer for rates, the peer by Larder for times: more is better.
    pub times: f64,
    /// The least that is aimed at.
    pub wanted: f64,
}

const WIDTH: f64 = 1060.0;
const LEFT: f64 = 530.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 46.0;
const LINE: f64 = 20.0;
/// The axis is logarithmic, from half to a hundred times.
const LEAST: f64 = 0.5;
const MOST: f64 = 128.0;
const TICKS: [f64; 8] = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0];

/// The picture.
pub fn svg(bars: &[Bar]) -> String {
    let height = TOP + LINE * bars.len() as f64 + 16.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<style>text{{fill:#24292f}}.axis{{stroke:#8c959f;stroke-width:1}}.one{{stroke:#24292f}}\
         .met{{fill:#2da44e}}.missed{{fill:#cf222e}}.wanted{{stroke:#24292f;stroke-width:2}}\
         @media(prefers-color-scheme:dark){{text{{fill:#e6edf3}}.one,.wanted{{stroke:#e6edf3}}}}</style>\n\
         <text x=\"{LEFT}\" y=\"16\">times the peer (more is better; the upright mark is the target)</text>\n"
    );
    for tick in TICKS {
        let (x, class) = (place(tick), if tick == 1.0 { "axis one" } else { "axis" });
        let bottom = height - 10.0;
        let _ = writeln!(
            out,
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" opacity=\".5\"/>\
             <text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>",
            TOP - 8.0,
            TOP - 12.0,
        );
    }
    for (number, bar) in bars.iter().enumerate() {
        let top = TOP + LINE * number as f64;
        let text = top + 13.0;
        let (from, to) = (place(bar.times.min(1.0)), place(bar.times.max(1.0)));
        let class = if bar.times >= bar.wanted { "met" } else { "missed" };
        let wanted = place(bar.wanted);
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{text:.1}\" text-anchor=\"end\">{}</text>\
             <rect class=\"{class}\" x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\"/>\
             <line class=\"wanted\" x1=\"{wanted:.1}\" y1=\"{:.1}\" x2=\"{wanted:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{:.1}\" y=\"{text:.1}\">{:.2} × {}</text>",
            LEFT - 10.0,
            escape(&bar.what),
            top + 2.0,
            (to - from).max(1.0),
            top,
            top + 18.0,
            to.max(wanted) + 6.0,
            bar.times,
            escape(&bar.peer),
        );
    }
    out + "</svg>\n"
}

/// Where on the axis so many times are.
fn place(times: f64) -> f64 {
    let share = (times.clamp(LEAST, MOST) / LEAST).log2() / (MOST / LEAST).log2();
    LEFT + share * (WIDTH - LEFT - RIGHT)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
