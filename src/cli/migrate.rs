//! `larder migrate`

use std::path::PathBuf;

use anyhow::bail;
use serde_json::json;

use super::output::{self, Format};
use crate::{
    node,
    reconciler::report::{Line, Verdict},
};

/// Moving from Flux to Larder
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  larder migrate report")]
pub enum Command {
    /// Tell which objects would differ under Larder, and why
    ///
    /// Reads all objects of Flux's kinds, of the cluster of KUBECONFIG or of a directory; no Secret, and nothing is
    /// written. The verdicts: `same`; `differs`, where Larder takes the object and something is otherwise; `not taken`,
    /// where it stays Flux's; `refused`, where Larder would tell in the status that it cannot.
    /// Where a kind may not be listed, or a file not be read, the rest is reported, and the exit status is 1.
    #[command(
        after_help = "What only a pull shows is not told: layers that are no gzip tar, and remote bases of kustomizations.\n\n\
                      Examples:\n  larder migrate report\n  KUBECONFIG=staging.yaml larder migrate report -o json | jq '.items[] | select(.verdict == \"refused\")'\n  \
                      larder migrate report --objects ./clusters/production"
    )]
    Report(Report),
}

/// `larder migrate report`
#[derive(Debug, clap::Args)]
pub struct Report {
    /// The *.yaml, *.yml and *.json of this directory, in the place of a cluster
    #[arg(long, value_name = "DIR")]
    objects: Option<PathBuf>,
    /// Only this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the command.
pub async fn run(command: Command) -> anyhow::Result<()> {
    let Command::Report(Report { objects, namespace, output }) = command;
    let spinner = output::spinner("reading the objects");
    let report = node::migration_report(objects.as_deref()).await;
    spinner.finish_and_clear();
    let report = report?;
    for error in &report.errors {
        output::say(format_args!("warning: {}: {}", error.place, error.error));
    }
    let wanted = |line: &&Line| namespace.as_ref().is_none_or(|namespace| line.namespace == *namespace);
    let lines: Vec<&Line> = report.lines.iter().filter(wanted).collect();
    if output != Format::Table {
        output::print_document(&json!({ "items": lines, "errors": report.errors }), output)?;
        return whole(&report);
    }
    if lines.is_empty() {
        if report.errors.is_empty() {
            output::say("no objects of Flux's kinds");
        }
        return whole(&report);
    }
    let row = |line: &&Line| {
        let name = format!("{}/{}", line.namespace, line.name);
        vec![line.kind.clone(), name, line.verdict.word().to_owned(), line.why.join("; ")]
    };
    output::print_table(&["KIND", "NAMESPACE/NAME", "VERDICT", "WHY"], &lines.iter().map(row).collect::<Vec<_>>())?;
    let count = |verdict: Verdict| lines.iter().filter(|line| line.verdict == verdict).count();
    let counts = Verdict::ALL.map(|verdict| format!("{} {}", count(verdict), verdict.word()));
    output::say(counts.join(", "));
    whole(&report)
}

/// A report of a part must not be taken for one of everything.
fn whole(report: &node::MigrationReport) -> anyhow::Result<()> {
    match report.errors.len() {
        0 => Ok(()),
        n => bail!("the report is incomplete: {n} of what there is could not be read; see the warnings above"),
    }
}
