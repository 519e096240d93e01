// Drives the pusher of gazebo/worlds/pusht.sdf through set-points, in the physics engine that Gazebo
// Fortress steps: libsdformat reads the world, libignition-physics' dartsim plugin simulates it.
//
//   gazebo_push WORLD.sdf < paths > poses
//
// Input, all numbers in metres and radians in gym-pusht's axes (x right, y down):
//   path NAME TEE_X TEE_Y TEE_ANGLE PUSHER_X PUSHER_Y HOLD_STEPS   a fresh world for what follows
//   X Y                                                           a set-point, held for HOLD_STEPS
// Output, a line a set-point, what is true when it has been held:
//   NAME PUSHER_X PUSHER_Y SPEED_X SPEED_Y TEE_X TEE_Y TEE_ANGLE TEE_HEIGHT TEE_TILT FEET
// FEET is how many contacts with the table the T had in the last step. Each line is flushed, so that
// another program may go on from what it reads.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iomanip>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <ignition/math/PID.hh>
#include <ignition/physics/FindFeatures.hh>
#include <ignition/physics/ForwardStep.hh>
#include <ignition/physics/FrameSemantics.hh>
#include <ignition/physics/FreeGroup.hh>
#include <ignition/physics/GetContacts.hh>
#include <ignition/physics/GetEntities.hh>
#include <ignition/physics/Joint.hh>
#include <ignition/physics/Link.hh>
#include <ignition/physics/RequestEngine.hh>
#include <ignition/physics/Shape.hh>
#include <ignition/physics/sdf/ConstructModel.hh>
#include <ignition/physics/sdf/ConstructWorld.hh>
#include <ignition/plugin/Loader.hh>
#include <Eigen/Geometry>
#include <sdf/Model.hh>
#include <sdf/Physics.hh>
#include <sdf/Root.hh>
#include <sdf/World.hh>

namespace physics = ignition::physics;

struct Features : physics::FeatureList<
    physics::ForwardStep,
    physics::GetBasicJointState,
    physics::SetBasicJointState,
    physics::GetContactsFromLastStepFeature,
    physics::GetEntities,
    physics::LinkFrameSemantics,
    physics::FindFreeGroupFeature,
    physics::SetFreeGroupWorldPose,
    physics::sdf::ConstructSdfModel,
    physics::sdf::ConstructSdfWorld> {};

using Engine = physics::Engine3dPtr<Features>;
using World = physics::World3dPtr<Features>;
using Joint = physics::Joint3dPtr<Features>;

struct Axis
{
  std::string name;
  ignition::math::PID pid;
  double target = 0.0;
};

// The position controllers as gz-sim's JointTrajectoryController makes them from its parameters.
std::vector<Axis> Controllers(const sdf::World &_world)
{
  const auto *pusher = _world.ModelByName("pusher");
  if (!pusher)
    throw std::runtime_error("the world has no model named pusher");
  for (auto plugin = pusher->Element()->FindElement("plugin"); plugin;
       plugin = plugin->GetNextElement("plugin"))
  {
    if (plugin->Get<std::string>("name").find("JointTrajectoryController") == std::string::npos)
      continue;
    const auto all = [&plugin](const std::string &_name)
    {
      std::vector<double> values;
      if (plugin->HasElement(_name))
        for (auto item = plugin->GetElement(_name); item; item = item->GetNextElement(_name))
          values.push_back(item->Get<double>());
      return values;
    };
    const auto nth = [](const std::vector<double> &_values, std::size_t _index, double _default)
    { return _index < _values.size() ? _values[_index] : _default; };
    const auto p = all("position_p_gain"), d = all("position_d_gain");
    const auto low = all("position_cmd_min"), high = all("position_cmd_max");
    std::vector<Axis> axes;
    for (auto item = plugin->GetElement("joint_name"); item;
         item = item->GetNextElement("joint_name"))
    {
      const auto index = axes.size();
      axes.push_back({item->Get<std::string>(),
          ignition::math::PID(nth(p, index, 0), 0, nth(d, index, 0), -1, 0, nth(high, index, -1),
                              nth(low, index, 0))});
    }
    return axes;
  }
  throw std::runtime_error("the model pusher has no JointTrajectoryController");
}

class Simulation
{
  public: Simulation(const Engine &_engine, const sdf::World &_description)
      : world(_engine->ConstructWorld(_description)),
        axes(Controllers(_description)),
        dt(_description.PhysicsDefault()->MaxStepSize())
  {
    this->input.Get<std::chrono::steady_clock::duration>() =
        std::chrono::duration_cast<std::chrono::steady_clock::duration>(
            std::chrono::duration<double>(this->dt));
    for (const auto &axis : this->axes)
      this->joints.push_back(this->world->GetModel("pusher")->GetJoint(axis.name));
  }

  // What gz-sim's set_pose service does, for the T alone; the pusher's joints are put in place.
  public: void Place(double _x, double _y, double _angle, const std::vector<double> &_pusher)
  {
    Eigen::Isometry3d pose = Eigen::Isometry3d::Identity();
    pose.translate(Eigen::Vector3d(_x, -_y, 0.0));
    pose.rotate(Eigen::AngleAxisd(-_angle, Eigen::Vector3d::UnitZ()));
    this->world->GetModel("tee")->FindFreeGroup()->SetWorldPose(pose);
    for (std::size_t i = 0; i < this->joints.size(); ++i)
      this->joints[i]->SetPosition(0, _pusher[i]);
  }

  public: void Run(const std::vector<double> &_setpoint, int _steps)
  {
    const auto step = this->input.Get<std::chrono::steady_clock::duration>();
    for (int i = 0; i < _steps; ++i)
    {
      for (std::size_t j = 0; j < this->joints.size(); ++j)
      {
        const double error = this->joints[j]->GetPosition(0) - _setpoint[j];
        this->joints[j]->SetForce(0, this->axes[j].pid.Update(error, step));
      }
      this->world->Step(this->output, this->state, this->input);
    }
  }

  public: void Print(const std::string &_name)
  {
    const auto frame = this->world->GetModel("tee")->GetLink("tee_link")->FrameDataRelativeToWorld();
    const Eigen::Vector3d ahead = frame.pose.linear().col(0), up = frame.pose.linear().col(2);
    std::cout << _name;
    for (const auto &joint : this->joints)
      std::cout << ' ' << joint->GetPosition(0);
    for (const auto &joint : this->joints)
      std::cout << ' ' << joint->GetVelocity(0);
    std::cout << ' ' << frame.pose.translation().x() << ' ' << -frame.pose.translation().y() << ' '
              << -std::atan2(ahead.y(), ahead.x()) << ' ' << frame.pose.translation().z() << ' '
              << std::acos(std::min(1.0, up.z())) << ' ' << this->Feet() << std::endl;
  }

  private: int Feet()
  {
    int count = 0;
    for (const auto &contact : this->world->GetContactsFromLastStep())
    {
      const auto &point = contact.Get<physics::World3d<Features>::ContactPoint>();
      for (const auto &shape : {point.collision1, point.collision2})
        count += shape->GetName().find("table_collision") != std::string::npos;
    }
    return count;
  }

  private: World world;
  private: std::vector<Axis> axes;
  private: double dt;
  private: std::vector<Joint> joints;
  private: physics::ForwardStep::Input input;
  private: physics::ForwardStep::State state;
  private: physics::ForwardStep::Output output;
};

int Main(const std::string &_file)
{
  sdf::Root root;
  for (const auto &error : root.Load(_file))
    throw std::runtime_error(error.Message());
  const auto *description = root.WorldByIndex(0);

  ignition::plugin::Loader loader;
  loader.LoadLib(DARTSIM_PLUGIN);
  const auto names = physics::FindFeatures3d<Features>::From(loader);
  if (names.empty())
    throw std::runtime_error("no engine with the needed features in " DARTSIM_PLUGIN);
  const auto engine =
      physics::RequestEngine3d<Features>::From(loader.Instantiate(*names.begin()));

  std::cout << std::setprecision(9);
  std::unique_ptr<Simulation> simulation;
  std::string line, name;
  int hold = 1;
  while (std::getline(std::cin, line))
  {
    std::istringstream words(line);
    double x = 0, y = 0;
    if (line.rfind("path ", 0) == 0)
    {
      std::string keyword;
      double angle = 0, pusher_x = 0, pusher_y = 0;
      if (!(words >> keyword >> name >> x >> y >> angle >> pusher_x >> pusher_y >> hold))
        throw std::runtime_error("cannot read '" + line + "'");
      simulation = std::make_unique<Simulation>(engine, *description);
      simulation->Place(x, y, angle, {pusher_x, pusher_y});
    }
    else if (simulation && words >> x >> y)
    {
      simulation->Run({x, y}, hold);
      simulation->Print(name);
    }
    else
      throw std::runtime_error("cannot read '" + line + "'");
  }
  return 0;
}

int main(int _count, char **_arguments)
{
  try
  {
    if (_count != 2)
      throw std::runtime_error("usage: gazebo_push WORLD.sdf < paths");
    return Main(_arguments[1]);
  }
  catch (const std::exception &error)
  {
    std::cerr << "gazebo_push: " << error.what() << '\n';
    return 1;
  }
}
