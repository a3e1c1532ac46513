//! From the tensors of an adapter's file to the factors of the modules here.
//!
//! Files join what is apart here (`in_proj_qkv`, gate and up of fused experts) and part what is together (an expert a
//! module). A joined pair of factors is cut so that the parts compute the same: either it is block-diagonal, as if the
//! parts had been joined, and is cut into the blocks, or every part gets all of `A` and its own rows of `B`.

use std::collections::BTreeMap;
use std::ops::Range;

use twinkle_core::{Error, Result};

use super::keys::{FactorName, Place};
use crate::config::ModelConfig;
use crate::lora::layout::{AdapterLayout, LoraModule, Site, site_name};
use crate::lora::projection::Projection;

/// A tensor as the file has it, in fp32.
#[derive(Clone, Debug)]
pub(super) struct Raw {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f32>,
}

/// The matrices of one factor: one, or one per expert.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Factor {
    pub(super) groups: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) values: Vec<f32>,
}

/// The two factors of a module.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    /// `[a_groups, rank, inputs]`.
    pub(super) a: Factor,
    /// `[b_groups, outputs, rank]`.
    pub(super) b: Factor,
    /// The rank that the file's module has; more than this pair's where it was cut from a larger one.
    pub(super) file_rank: usize,
    /// Whether the file's format fixes the rank by PEFT's settings, so that another one is a mistake.
    pub(super) is_peft: bool,
}

impl Pair {
    pub(super) fn rank(&self) -> usize {
        self.a.rows
    }
}

impl Factor {
    fn matrix(&self, group: usize) -> &[f32] {
        let size = self.rows * self.columns;
        &self.values[group * size..(group + 1) * size]
    }

    /// These rows of every matrix.
    fn rows(&self, rows: Range<usize>) -> Self {
        let mut values = Vec::with_capacity(self.groups * rows.len() * self.columns);
        for group in 0..self.groups {
            values.extend_from_slice(&self.matrix(group)[rows.start * self.columns..rows.end * self.columns]);
        }
        Self { groups: self.groups, rows: rows.len(), columns: self.columns, values }
    }

    /// These columns of every matrix.
    fn columns(&self, columns: Range<usize>) -> Self {
        let mut values = Vec::with_capacity(self.groups * self.rows * columns.len());
        for row in self.values.chunks_exact(self.columns) {
            values.extend_from_slice(&row[columns.clone()]);
        }
        Self { groups: self.groups, rows: self.rows, columns: columns.len(), values }
    }

    fn is_zero_outside(&self, columns: &Range<usize>) -> bool {
        let outside = |row: &[f32]| row[..columns.start].iter().chain(&row[columns.end..]).all(|value| *value == 0.0);
        self.values.chunks_exact(self.columns).all(outside)
    }

    fn is_equal_over_groups(&self) -> bool {
        (1..self.groups).all(|group| self.matrix(group) == self.matrix(0))
    }
}

/// What a joined pair is cut by.
struct Cutter<'a> {
    config: &'a ModelConfig,
    /// The layout that is asked for, if it is known.
    layout: Option<&'a AdapterLayout>,
}

/// The factors of every module in the file. A known `layout` decides how a joined pair is cut where the numbers do not.
pub(super) fn by_site(
    mut tensors: BTreeMap<(Place, FactorName), Raw>,
    config: &ModelConfig,
    layout: Option<&AdapterLayout>,
) -> Result<BTreeMap<Site, Pair>> {
    let cutter = Cutter { config, layout };
    let mut found = BTreeMap::new();
    let mut experts: BTreeMap<Site, Vec<Option<(Raw, Raw)>>> = BTreeMap::new();
    let expert_count = config.moe.as_ref().map_or(0, |moe| moe.expert_count);
    let has_inner = |tensors: &BTreeMap<(Place, FactorName), Raw>, layer: usize| {
        tensors.contains_key(&(Place::InnerExperts(layer), FactorName::A))
    };
    let inner: Vec<usize> = (0..config.layer_count).filter(|layer| has_inner(&tensors, *layer)).collect();
    while let Some(((place, _), _)) = tensors.first_key_value() {
        let place = *place;
        let (a, b) = (tensors.remove(&(place, FactorName::A)), tensors.remove(&(place, FactorName::B)));
        let (Some(a), Some(b)) = (a, b) else {
            return Err(Error::invalid(format!("the adapter has only one of the two factors of {}", describe(place))));
        };
        match place {
            Place::Module(site) => {
                let pair = if is_expert(site) { stacked(site, a, b, config)? } else { plain(site, a, b, config)? };
                found.insert(site, pair);
            }
            Place::Expert(layer, projection, expert) => {
                let site = Site::Layer(layer, projection);
                let all = experts.entry(site).or_insert_with(|| vec![None; expert_count]);
                all[expert] = Some((a, b));
            }
            Place::JointQkv(layer) => found.extend(cutter.joint_qkv(layer, a, b)?),
            Place::InnerExperts(layer) => found.extend(cutter.wrapped(layer, a, &b, true)?),
            Place::OuterExperts(layer) => found.extend(cutter.wrapped(layer, a, &b, !inner.contains(&layer))?),
        }
    }
    for (site, all) in experts {
        found.insert(site, per_expert(site, all, config)?);
    }
    Ok(found)
}

fn is_expert(site: Site) -> bool {
    matches!(site, Site::Layer(_, projection) if projection.is_expert())
}

fn describe(place: Place) -> String {
    match place {
        Place::Module(site) => format!("`{}`", site_name(site)),
        Place::Expert(layer, projection, expert) => {
            format!("`model.layers.{layer}.mlp.experts.{expert}.{}`", projection.leaf())
        }
        Place::JointQkv(layer) => format!("`model.layers.{layer}.linear_attn.in_proj_qkv`"),
        Place::InnerExperts(layer) | Place::OuterExperts(layer) => format!("`model.layers.{layer}.mlp.experts`"),
    }
}

fn shape_of(site: Site, config: &ModelConfig) -> (usize, usize) {
    match site {
        Site::Layer(_, projection) => projection.shape(config),
        Site::Head => (config.vocab_size, config.hidden_size),
    }
}

/// Takes `[rows, columns]` from the file; a size of 0 may be anything.
fn matrix(raw: Raw, (rows, columns): (usize, usize), name: &str) -> Result<Factor> {
    let fits = |found: usize, wanted: usize| wanted == 0 || found == wanted;
    match *raw.shape.as_slice() {
        [found_rows, found_columns] if fits(found_rows, rows) && fits(found_columns, columns) => {
            Ok(Factor { groups: 1, rows: found_rows, columns: found_columns, values: raw.values })
        }
        _ => Err(wrong_shape(name, &raw.shape, &[rows, columns])),
    }
}

fn wrong_shape(name: &str, found: &[usize], wanted: &[usize]) -> Error {
    let wanted: Vec<String> =
        wanted.iter().map(|size| if *size == 0 { "rank".to_owned() } else { size.to_string() }).collect();
    Error::invalid(format!(
        "a factor of the adapter on {name} has shape {found:?}, this model asks for [{}]",
        wanted.join(", ")
    ))
}

fn checked(a: Factor, b: Factor, name: &str) -> Result<Pair> {
    if a.rows != b.columns || a.rows == 0 {
        return Err(Error::invalid(format!(
            "the factors of the adapter on {name} have ranks `{}` and `{}`: their shapes do not fit",
            a.rows, b.columns
        )));
    }
    let file_rank = a.rows;
    Ok(Pair { a, b, file_rank, is_peft: true })
}

fn plain(site: Site, a: Raw, b: Raw, config: &ModelConfig) -> Result<Pair> {
    let (outputs, inputs) = shape_of(site, config);
    let name = format!("`{}`", site_name(site));
    checked(matrix(a, (0, inputs), &name)?, matrix(b, (outputs, 0), &name)?, &name)
}

/// Tinker's experts: `[E or 1, rank, inputs]` and `[E or 1, outputs, rank]`.
fn stacked(site: Site, a: Raw, b: Raw, config: &ModelConfig) -> Result<Pair> {
    let (outputs, inputs) = shape_of(site, config);
    let count = config.moe.as_ref().map_or(0, |moe| moe.expert_count);
    let name = format!("`{}`", site_name(site));
    let cube = |raw: Raw, rows: usize, columns: usize| match *raw.shape.as_slice() {
        [groups, found_rows, found_columns]
            if (groups == 1 || groups == count)
                && (rows == 0 || found_rows == rows)
                && (columns == 0 || found_columns == columns) =>
        {
            Ok(Factor { groups, rows: found_rows, columns: found_columns, values: raw.values })
        }
        _ => Err(wrong_shape(&name, &raw.shape, &[count, rows, columns])),
    };
    let pair = checked(cube(a, 0, inputs)?, cube(b, outputs, 0)?, &name)?;
    Ok(Pair { is_peft: false, ..pair })
}

/// One module per expert, as PEFT had it before transformers 5 and vLLM has it.
fn per_expert(site: Site, all: Vec<Option<(Raw, Raw)>>, config: &ModelConfig) -> Result<Pair> {
    let (count, name) = (all.len(), format!("`{}`", site_name(site)));
    let mut joined: Option<Pair> = None;
    for (expert, pair) in all.into_iter().enumerate() {
        let Some((a, b)) = pair else {
            return Err(Error::unsupported(format!("the adapter on {name} lacks expert `{expert}` of `{count}`")));
        };
        let pair = plain(site, a, b, config)?;
        match &mut joined {
            None => joined = Some(pair),
            Some(joined) if joined.rank() == pair.rank() => {
                joined.a.groups += 1;
                joined.a.values.extend(pair.a.values);
                joined.b.groups += 1;
                joined.b.values.extend(pair.b.values);
            }
            Some(_) => {
                return Err(Error::unsupported(format!("the experts of the adapter on {name} have different ranks")));
            }
        }
    }
    joined.ok_or_else(|| Error::internal("a layer of experts has none"))
}

impl Cutter<'_> {
    /// Cuts `linear_attn.in_proj_qkv` into its three parts.
    fn joint_qkv(&self, layer: usize, a: Raw, b: Raw) -> Result<Vec<(Site, Pair)>> {
        let name = describe(Place::JointQkv(layer));
        let parts = [Projection::DeltaQuery, Projection::DeltaKey, Projection::DeltaValue];
        let parts = parts.map(|part| (Site::Layer(layer, part), part.rows_in_qkv(self.config).unwrap_or_default()));
        let outputs = parts.iter().map(|(_, rows)| rows.len()).sum();
        let a = matrix(a, (0, self.config.hidden_size), &name)?;
        let pair = checked(a, matrix(b, (outputs, 0), &name)?, &name)?;
        Ok(self.cut(&pair, &parts))
    }

    /// The experts as PEFT wraps the fused parameters of transformers 5: `A` `[E · rank, inputs]` expert by expert, `B`
    /// `[outputs, rank · E]` with the experts innermost.
    fn wrapped(&self, layer: usize, a: Raw, b: &Raw, is_gate_up_likely: bool) -> Result<Vec<(Site, Pair)>> {
        let name = describe(Place::OuterExperts(layer));
        let count = self.config.moe.as_ref().map_or(1, |moe| moe.expert_count);
        let (wide, hidden) = Projection::ExpertGate.shape(self.config);
        let fits = |inputs: usize, outputs: usize| {
            a.shape.get(1) == Some(&inputs) && b.shape.first() == Some(&outputs) && a.shape.first() == b.shape.get(1)
        };
        let (is_gate_up, is_down) = (fits(hidden, 2 * wide), fits(wide, hidden));
        let is_gate_up = is_gate_up && (is_gate_up_likely || !is_down);
        let stacked = a.shape.first().copied().unwrap_or(0);
        if !(is_gate_up || is_down) || stacked == 0 || !stacked.is_multiple_of(count) {
            return Err(Error::invalid(format!(
                "the factors of the adapter on {name} have shapes {:?} and {:?}, which are neither those of \
                 `gate_up_proj` nor of `down_proj`",
                a.shape, b.shape
            )));
        }
        let rank = stacked / count;
        let (inputs, outputs) = if is_gate_up { (hidden, 2 * wide) } else { (wide, hidden) };
        let mut values = vec![0.0; b.values.len()];
        for (output, row) in b.values.chunks_exact(rank * count).enumerate() {
            for (place, value) in row.iter().enumerate() {
                let (component, expert) = (place / count, place % count);
                values[(expert * outputs + output) * rank + component] = *value;
            }
        }
        let a = Factor { groups: count, rows: rank, columns: inputs, values: a.values };
        let b = Factor { groups: count, rows: outputs, columns: rank, values };
        let pair = checked(a, b, &name)?;
        if !is_gate_up {
            return Ok(vec![(Site::Layer(layer, Projection::ExpertDown), pair)]);
        }
        let (gate, up) = (Site::Layer(layer, Projection::ExpertGate), Site::Layer(layer, Projection::ExpertUp));
        Ok(self.cut(&pair, &[(gate, 0..wide), (up, wide..2 * wide)]))
    }

    /// Cuts a pair by rows of `B`: into blocks of equal rank if it is made of such, else with all of `A` in every part.
    fn cut(&self, pair: &Pair, parts: &[(Site, Range<usize>)]) -> Vec<(Site, Pair)> {
        let rank = pair.rank();
        let share = rank / parts.len();
        let block = |part: usize| part * share..(part + 1) * share;
        let bs: Vec<Factor> = parts.iter().map(|(_, rows)| pair.b.rows(rows.clone())).collect();
        let wanted = self.layout.and_then(|layout| layout.modules().get(layout.module_at(parts[0].0)?));
        let is_blocks = rank.is_multiple_of(parts.len())
            && bs.iter().enumerate().all(|(part, b)| b.is_zero_outside(&block(part)))
            // A `B` that is zero everywhere says nothing.
            && wanted.map_or_else(|| pair.b.values.iter().any(|value| *value != 0.0), |module| module.rank == share);
        let pairs = bs.into_iter().enumerate().map(|(part, b)| {
            let (a, b) =
                if is_blocks { (pair.a.rows(block(part)), b.columns(block(part))) } else { (pair.a.clone(), b) };
            Pair { a, b, file_rank: pair.file_rank, is_peft: pair.is_peft }
        });
        parts.iter().map(|(site, _)| *site).zip(pairs).collect()
    }
}

/// Writes a pair into the flat vector of a layout.
pub(super) fn place_into(module: &LoraModule, pair: &Pair, flat: &mut [f32]) -> Result<()> {
    if pair.rank() != module.rank {
        return Err(Error::invalid(format!(
            "the adapter on `{}` has rank `{}`, its description asks for `{}`: their shapes do not fit",
            module.name,
            pair.rank(),
            module.rank
        )));
    }
    for (factor, groups, range) in
        [(&pair.a, module.a_groups, module.a_range()), (&pair.b, module.b_groups, module.b_range())]
    {
        let target = &mut flat[range];
        match (factor.groups, groups) {
            (found, wanted) if found == wanted => target.copy_from_slice(&factor.values),
            (1, _) => {
                for part in target.chunks_exact_mut(factor.values.len()) {
                    part.copy_from_slice(&factor.values);
                }
            }
            (_, 1) if factor.is_equal_over_groups() => target.copy_from_slice(factor.matrix(0)),
            _ => {
                return Err(Error::invalid(format!(
                    "the experts of the adapter on `{}` differ where its description says that they share a factor",
                    module.name
                )));
            }
        }
    }
    Ok(())
}
