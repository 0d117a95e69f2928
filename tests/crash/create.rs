//! Bug this finds: a half-created image that opens and claims to be a good one. (By name nothing half-made ever shows:
//! files are made beside their name and renamed. This is about storages handed in by a library user.)

use crate::budget;
use crate::case::{Case, Judge, Recorded};
use crate::chains::{self, ChainSpec, LayerSpec};
use crate::files;
use vhdkit::chain::{Chain, Layer};
use vhdkit::storage::Access;
use vhdkit::storage::sim::{CrashState, ExploreOptions, SimDisk};
use vhdkit::{Format, ImageId};

/// An image that is made in an empty storage.
pub(crate) struct Creation {
    name: String,
    spec: ChainSpec,
    parent: Option<ImageId>,
}

impl Creation {
    fn new(format: Format, base_fixed: bool, parent: Option<ImageId>) -> Self {
        let (size, block_size) = if format == Format::Vhd { (64 << 10, 8192) } else { (3 << 20, 1 << 20) };
        let layers = vec![LayerSpec { size, block_size, edits: Vec::new() }];
        let name = format!("create {format}, fixed {base_fixed}, parent {}", parent.is_some());
        Self { name, spec: ChainSpec { format, sector: 512, base_fixed, layers }, parent }
    }

    /// One of each kind.
    pub(crate) fn all(format: Format) -> [Self; 3] {
        let parent = match format {
            Format::Vhd => ImageId::Vhd([7; 16]),
            _ => ImageId::Vhdx(vhdkit::Guid::from_u128(7)),
        };
        [Self::new(format, false, None), Self::new(format, true, None), Self::new(format, false, Some(parent))]
    }

    /// A VHDX that opens is whole.
    fn breaks_rules(&self, state: &CrashState<'_>) -> Result<(), String> {
        files::check_rules(self.spec.format, &state.disk(), ("new", &[]))
    }

    fn judge(&self, state: &CrashState<'_>, done: usize) -> Result<(), String> {
        match Layer::open(state.disk().file("new"), Access::Read) {
            Err(error) if state.point() >= done => Err(format!("a finished image does not open: {error}")),
            Err(_) => Ok(()),
            Ok(layer) if layer.image().virtual_size() != self.spec.layers[0].size => Err("another size".to_owned()),
            Ok(layer) => match self.parent {
                _ if self.spec.format == Format::Vhdx && self.breaks_rules(state).is_err() => self.breaks_rules(state),
                Some(parent) => {
                    let link = layer.image().parent_link().ok_or("lost its parent")?;
                    if link.accepts(parent) { Ok(()) } else { Err("another parent".to_owned()) }
                }
                None => {
                    let chain = Chain::from_layers(vec![layer]).map_err(|error| error.to_string())?;
                    let mut bytes = vec![0xEE; chain.virtual_size() as usize];
                    chain.read_at(&mut bytes, 0).map_err(|error| format!("opens and cannot be read: {error}"))?;
                    let zero = bytes.iter().all(|&byte| byte == 0);
                    if zero { Ok(()) } else { Err("a new disk shows something else than zeros".to_owned()) }
                }
            },
        }
    }
}

impl Case for Creation {
    fn name(&self) -> &str {
        &self.name
    }

    fn record(&self, spoil: &dyn Fn(&SimDisk)) -> Recorded<'_> {
        let disk = SimDisk::new();
        spoil(&disk);
        chains::create_layer(disk.file("new"), &self.spec, 0, self.parent);
        let done = disk.promise();
        let judge: Judge<'_> = Box::new(move |state: &CrashState<'_>| self.judge(state, done));
        Recorded { disk, judge }
    }
}

#[test]
fn a_created_image_is_whole_or_does_not_open() {
    for creation in [Format::Vhd, Format::Vhdx].into_iter().flat_map(Creation::all) {
        let report = creation.walk(&ExploreOptions::seeded(budget::seed()), &|_| {});
        println!("{}: {} crash states at {} points", creation.name, report.states, report.points);
        report.assert_ok();
        assert!(report.states >= 6, "the workload writes something");
    }
}
