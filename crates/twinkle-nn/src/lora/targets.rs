//! Which modules an adapter sits on, and with which rank and scale: Tinker's three switches or PEFT's rules.

use regex::{Regex, RegexSet};
use twinkle_core::call::{LoraSpec, ModuleNames};
use twinkle_core::{Error, Result};

use super::layout::{Site, site_name};
use super::projection::Projection;
use crate::config::ModelConfig;

/// PEFT's name for every linear map but the head. What it is, is our own table: PEFT's depends on the version of
/// transformers, and takes routers for some models.
const ALL_LINEAR: &str = "all-linear";

/// A [`LoraSpec`], checked and compiled for one model.
pub(super) struct Rules<'a> {
    spec: &'a LoraSpec,
    selection: Selection,
    ranks: Patterns,
    alphas: Patterns,
    expert_count: usize,
    /// The rank on experts that no pattern names.
    expert_rank: u32,
    rank_limit: u32,
}

/// Which modules.
enum Selection {
    Switches,
    Rules { modules: Names, exclude: Option<Names>, layers: Option<Vec<u32>> },
}

enum Names {
    Suffixes(Vec<String>),
    Pattern(Regex),
    AllLinear,
}

impl<'a> Rules<'a> {
    pub(super) fn new(config: &ModelConfig, spec: &'a LoraSpec) -> Result<Self> {
        let rank_limit = config.hidden_size.min(4096) as u32;
        let selection = match &spec.targets {
            Some(targets) => Selection::Rules {
                modules: Names::new(&targets.modules)?,
                exclude: targets.exclude.as_ref().map(Names::new).transpose()?,
                layers: targets.layers.clone(),
            },
            None if spec.train_attn || spec.train_mlp || spec.train_unembed => Selection::Switches,
            None => {
                return Err(Error::invalid("the adapter trains nothing")
                    .hint("turn on at least one of `train_attn`, `train_mlp`, `train_unembed`"));
            }
        };
        let (expert_count, used) = config.moe.as_ref().map_or((0, 1), |moe| (moe.expert_count, moe.experts_per_token));
        let rules = Self {
            spec,
            selection,
            ranks: Patterns::new(spec.rank_pattern.iter().map(|(pattern, _)| pattern.as_str()))?,
            alphas: Patterns::new(spec.alpha_pattern.iter().map(|(pattern, _)| pattern.as_str()))?,
            expert_count,
            expert_rank: spec.expert_rank.unwrap_or_else(|| (spec.rank / used.max(1) as u32).max(1)),
            rank_limit,
        };
        rules.checked_rank(spec.rank)?;
        checked_alpha(spec.alpha)?;
        Ok(rules)
    }

    /// Whether the module at `site` is adapted.
    pub(super) fn wants(&self, site: Site) -> Result<bool> {
        match &self.selection {
            Selection::Switches => Ok(match site {
                Site::Layer(_, projection) if projection.is_attention() => self.spec.train_attn,
                Site::Layer(..) => self.spec.train_mlp,
                Site::Head => self.spec.train_unembed,
            }),
            Selection::Rules { modules, exclude, layers } => {
                let is_in_layers = match (layers, site, modules) {
                    // PEFT heeds the layers only beside a list of names.
                    (Some(layers), Site::Layer(layer, _), Names::Suffixes(_)) if !layers.is_empty() => {
                        layers.iter().any(|wanted| *wanted as usize == layer)
                    }
                    (Some(layers), Site::Head, Names::Suffixes(_)) => layers.is_empty(),
                    _ => true,
                };
                Ok(is_in_layers
                    && self.matches(modules, site)?
                    && !exclude.as_ref().map_or(Ok(false), |exclude| self.matches(exclude, site))?)
            }
        }
    }

    /// The rank of the module at `site` and what its `B A x` is multiplied by.
    pub(super) fn rank_and_scale(&self, site: Site) -> Result<(usize, f64)> {
        let nominal = self.nominal(site)?;
        let rank = match site {
            // Of a rank that no pattern names, experts get a share. The scale stays that of the whole rank, as in
            // Tinker's own tools.
            Site::Layer(_, projection) if projection.is_expert() && !nominal.is_named => {
                self.checked_rank(self.expert_rank)?
            }
            _ => nominal.rank,
        };
        Ok((rank as usize, nominal.scale))
    }

    /// What PEFT's settings say of the module at `site`.
    pub(super) fn nominal(&self, site: Site) -> Result<Nominal> {
        let named = self.first(&self.ranks, site)?.and_then(|place| self.spec.rank_pattern.get(place));
        let rank = self.checked_rank(named.map_or(self.spec.rank, |(_, rank)| *rank))?;
        let alpha = self.first(&self.alphas, site)?.and_then(|place| self.spec.alpha_pattern.get(place));
        let alpha = checked_alpha(alpha.map_or(self.spec.alpha, |(_, alpha)| *alpha))?;
        Ok(Nominal { rank, is_named: named.is_some(), scale: alpha / divisor(rank, self.spec.use_rslora) })
    }

    fn matches(&self, names: &Names, site: Site) -> Result<bool> {
        if names_of(site).iter().any(|name| names.matches(name, site)) {
            return Ok(true);
        }
        let matching = self.of_experts(site).filter(|name| names.matches(name, site)).count();
        if matching > 0 && matching < self.expert_count {
            return Err(Error::unsupported(format!(
                "the adapter's targets match only `{matching}` of the `{}` experts of `{}`",
                self.expert_count,
                site_name(site)
            )));
        }
        Ok(matching > 0)
    }

    /// The first pattern that matches a name of the module at `site`.
    fn first(&self, patterns: &Patterns, site: Site) -> Result<Option<usize>> {
        if patterns.set.is_empty() {
            return Ok(None);
        }
        if let Some(place) = names_of(site).iter().filter_map(|name| patterns.first(name)).min() {
            return Ok(Some(place));
        }
        let mut found = self.of_experts(site).map(|name| patterns.first(&name));
        let first = found.next().flatten();
        if found.any(|other| other != first) {
            return Err(Error::unsupported(format!(
                "the experts of `{}` have different ranks or alphas, which is not computed here",
                site_name(site)
            )));
        }
        Ok(first)
    }

    /// The names of an experts' projection, expert by expert; of others none.
    fn of_experts(&self, site: Site) -> impl Iterator<Item = String> + use<> {
        let (place, experts) = match site {
            Site::Layer(layer, projection) if projection.is_expert() => (Some((layer, projection)), self.expert_count),
            _ => (None, 0),
        };
        (0..experts).filter_map(move |expert| {
            let (layer, projection) = place?;
            Some(format!("model.layers.{layer}.mlp.experts.{expert}.{}", projection.leaf()))
        })
    }

    fn checked_rank(&self, rank: u32) -> Result<u32> {
        if rank == 0 || rank > self.rank_limit {
            return Err(Error::invalid(format!(
                "the adapter's rank is `{rank}`, but must be from 1 to {}",
                self.rank_limit
            )));
        }
        Ok(rank)
    }
}

/// Rank and scale of a module as PEFT computes them.
pub(super) struct Nominal {
    pub(super) rank: u32,
    /// Whether a pattern gave the rank.
    is_named: bool,
    pub(super) scale: f64,
}

/// What alpha is divided by.
pub(super) fn divisor(rank: u32, use_rslora: bool) -> f64 {
    if use_rslora { f64::from(rank).sqrt() } else { f64::from(rank) }
}

fn checked_alpha(alpha: f64) -> Result<f64> {
    if !alpha.is_finite() || alpha <= 0.0 {
        return Err(Error::invalid(format!("the adapter's alpha is `{alpha}`, but must be above 0")));
    }
    Ok(alpha)
}

/// What the module at `site` is called: here, in PEFT, by Tinker, and where the text model is nested in another.
fn names_of(site: Site) -> Vec<String> {
    let mut names = vec![site_name(site)];
    if let Site::Layer(layer, projection) = site {
        let others: &[&str] = match projection {
            Projection::DeltaQuery | Projection::DeltaKey | Projection::DeltaValue => &["linear_attn.in_proj_qkv"],
            Projection::ExpertGate => &["mlp.experts.gate_up_proj", "mlp.experts.w1"],
            Projection::ExpertUp => &["mlp.experts.gate_up_proj", "mlp.experts.w3"],
            Projection::ExpertDown => &["mlp.experts.w2"],
            _ => &[],
        };
        names.extend(others.iter().map(|other| format!("model.layers.{layer}.{other}")));
    } else {
        names.push("model.unembed_tokens".to_owned());
    }
    let nested = names.iter().map(|name| name.replacen("model.", "model.language_model.", 1)).collect::<Vec<_>>();
    names.extend(nested);
    names
}

impl Names {
    fn new(names: &ModuleNames) -> Result<Self> {
        match names {
            ModuleNames::Suffixes(names) if names.is_empty() || names.iter().any(String::is_empty) => {
                Err(Error::invalid("the adapter's list of modules is empty or has an empty name"))
            }
            ModuleNames::Suffixes(names) => Ok(Self::Suffixes(names.clone())),
            ModuleNames::Pattern(name) if name.eq_ignore_ascii_case(ALL_LINEAR) => Ok(Self::AllLinear),
            ModuleNames::Pattern(pattern) => Ok(Self::Pattern(compile(&format!("^(?:{pattern})$"), pattern)?)),
        }
    }

    fn matches(&self, name: &str, site: Site) -> bool {
        match self {
            Self::Suffixes(suffixes) => suffixes.iter().any(|suffix| {
                name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }),
            Self::Pattern(pattern) => pattern.is_match(name),
            Self::AllLinear => site != Site::Head,
        }
    }
}

/// The keys of a `rank_pattern` or `alpha_pattern`, each a regular expression for the end of a name.
struct Patterns {
    set: RegexSet,
}

impl Patterns {
    fn new<'p>(patterns: impl Iterator<Item = &'p str>) -> Result<Self> {
        let mut whole = Vec::new();
        for pattern in patterns {
            let text = format!("^(?:.*\\.)?(?:{pattern})$");
            compile(&text, pattern)?;
            whole.push(text);
        }
        let set = RegexSet::new(&whole)
            .map_err(|error| Error::invalid(format!("the adapter's patterns cannot be read: {error}")))?;
        Ok(Self { set })
    }

    fn first(&self, name: &str) -> Option<usize> {
        self.set.matches(name).iter().next()
    }
}

fn compile(text: &str, pattern: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| {
        Error::invalid(format!("`{pattern}` is not a regular expression that is understood here: {error}"))
            .hint("look-around and back-references are not supported; a list of names always works")
    })
}
