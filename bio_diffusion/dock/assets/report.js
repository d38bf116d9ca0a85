// The page's own script: shows the chosen pose in the viewer. Data stand in #data as JSON.
"use strict";
(function () {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = Array.from(document.querySelectorAll("tr[data-pose]"));
  const shown = document.getElementById("shown");
  const box = (id) => document.getElementById(id);
  let viewer = null;
  let protein = null; // name of the protein that the viewer holds
  let current = 0;

  // Indices of the atoms of residues that come within 5 Å (a selection cannot span two models).
  function around(receptor, main) {
    const ligand = main.selectedAtoms({});
    const residue = (atom) => atom.chain + " " + atom.resi + " " + (atom.icode || "");
    const close = (atom) =>
      ligand.some((o) => (o.x - atom.x) ** 2 + (o.y - atom.y) ** 2 + (o.z - atom.z) ** 2 < 25);
    const atoms = receptor.selectedAtoms({});
    const near = new Set(atoms.filter(close).map(residue));
    return atoms.filter((atom) => near.has(residue(atom))).map((atom) => atom.index);
  }

  function draw(zoom) {
    const pose = data.poses[current];
    const ligand = data.ligands[pose.ligand];
    if (protein !== ligand.protein || zoom === "all") {
      viewer.removeAllModels();
      viewer.addModel(data.proteins[ligand.protein], "pdb", { keepH: true });
      protein = ligand.protein;
    }
    const receptor = viewer.getModel(0);
    for (const model of viewer.getModelList ? viewer.getModelList() : []) {
      if (model !== receptor) viewer.removeModel(model);
    }
    viewer.setStyle({ model: receptor }, { cartoon: { color: "#c3ccd9", opacity: 0.85 } });
    viewer.addStyle({ model: receptor, hetflag: true }, { stick: { radius: 0.12 }, sphere: { scale: 0.2 } });
    const add = (block, style) => {
      const model = viewer.addModel(block, "sdf");
      model.setStyle({}, style);
      return model;
    };
    if (box("all").checked) {
      data.poses.forEach((other, i) => {
        if (other.ligand === pose.ligand && i !== current) {
          add(other.block, { stick: { radius: 0.06, color: "#9aa7b8" } });
        }
      });
    }
    if (box("crystal").checked && ligand.crystal) {
      add(ligand.crystal, { stick: { radius: 0.1, colorscheme: "grayCarbon" } });
    }
    const main = add(pose.block, { stick: { radius: 0.16, colorscheme: "cyanCarbon" } });
    if (box("pocket").checked) {
      viewer.addStyle({ model: receptor, index: around(receptor, main) }, {
        stick: { radius: 0.09, colorscheme: "whiteCarbon" },
      });
    }
    if (zoom) viewer.zoomTo({ model: main }), viewer.zoom(0.6);
    viewer.render();
    box("crystal").disabled = !ligand.crystal;
    rows.forEach((row) => row.classList.toggle("picked", Number(row.dataset.pose) === current));
    shown.textContent = ligand.id + ", rank " + pose.rank + ", " + pose.energy + " kcal/mol";
    document.body.dataset.viewer =
      "shown " + current + " atoms " + receptor.selectedAtoms({}).length + "+" + main.selectedAtoms({}).length;
  }

  function pick(index, zoom) {
    current = index;
    draw(zoom);
  }

  rows.forEach((row) => {
    const choose = () => pick(Number(row.dataset.pose), "pose");
    row.tabIndex = 0;
    row.addEventListener("click", choose);
    row.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); }
    });
  });
  ["all", "crystal", "pocket"].forEach((id) => box(id).addEventListener("change", () => draw(null)));
  box("ligand").addEventListener("change", (event) => pick(Number(event.target.value), "pose"));

  if (!data.poses.length) {
    shown.textContent = "No pose to show.";
    document.body.dataset.viewer = "empty";
    return;
  }
  try {
    viewer = $3Dmol.createViewer("viewer", { backgroundColor: "white" });
    pick(0, "all");
  } catch (error) {
    shown.textContent = "The 3D viewer needs WebGL, which this browser does not offer (" + error.message + ").";
    document.body.dataset.viewer = "failed " + error.message;
  }
})();
